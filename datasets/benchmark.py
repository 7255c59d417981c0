"""Batch, Task and Benchmark: a source of images, split into a stream of tasks, living on the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram.datasets import scenarios
from engram.datasets.augment import Augment, normalised_as_asked
from engram.datasets.lazy_images import DiskImages, identity, in_turn, join, part_of
from engram.datasets.sources import Source
from engram.datasets.storage import placed
from engram.utils import seeding
from engram.utils.device import one_thread
from engram.utils.errors import UserError
from engram.utils.scores import order_hash

# Images augmented in one call, in bytes of float32: large enough to spread the cost of a call over
# many small batches, small enough to stay in a CPU's cache.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 128 << 20}
# Test images of all tasks are transformed once and kept up to this many bytes, beyond it at every evaluation.
STACK_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}


class Batch(NamedTuple):
    """What a method sees in one step; all tensors on the training device.

    x: (N, C, H, W) float32, augmented and normalised. x_raw: (N, C, H, W) uint8, as in the data set.
    y: (N,) labels. task_id: (N,). index: (N,) positions in the original training set.
    """

    x: Tensor
    x_raw: Tensor
    y: Tensor
    task_id: Tensor
    index: Tensor


class Samples(NamedTuple):
    """Un-augmented samples on the device: `Batch` without `x`."""

    x_raw: Tensor
    y: Tensor
    task_id: Tensor
    index: Tensor


@dataclass(frozen=True)
class Task:
    """One step of the stream.

    id: position in the stream. classes: labels that occur. parts: the tasks whose training data this
    one presents (its own; a joint run presents all). train_index, test_index: positions in the
    source. transform: raw uint8 images → the task's uint8 images (permuted, rotated). label_shift: what
    is added to the source's labels. shuffled: False where training samples come in the order of
    train_index, in every epoch.
    """

    id: int
    classes: tuple[int, ...]
    parts: tuple[int, ...]
    train_index: Tensor
    test_index: Tensor
    transform: Callable[[Tensor], Tensor] = identity
    label_shift: int = 0
    shuffled: bool = True


class Benchmark:
    """A data set, a scenario, a class order and a seed: the stream that a method learns.

    scenario: `class-il` or `domain-il`, or `task-il` when every task has its own head.
    transforms: what was drawn for the tasks' transforms (angles, permutations), to be saved with the run.
    """

    def __init__(
        self,
        name: str,
        scenario: str,
        source: Source,
        tasks: list[Task],
        augment: Augment,
        class_order: np.ndarray,
        seed: int,
        device: torch.device | str,
        transforms: dict[str, list] | None = None,
    ):
        self.transforms = transforms or {}
        self.name, self.scenario, self.tasks = name, scenario, tasks
        self.augment, self.seed = augment, seed
        self.device = torch.device(device)
        self.n_classes, self.n_train = 1 + max(c for task in tasks for c in task.classes), len(source.train_y)
        self.input_shape = tuple(source.train_x.shape[1:])
        labels = [torch.from_numpy(scenarios.relabel(y.numpy(), class_order)) for y in source.labels]
        n_sources = 1 + max(task.classes[-1] - task.label_shift for task in tasks)
        self.class_order = class_order[:n_sources]  # classes that no task has come last
        self.class_names = [source.classes[c] for c in self.class_order]
        self._train_x, self._test_x = (x.to(self.device) for x in (source.train_x, source.test_x))
        self.on_disk = getattr(source.train_x, "note", None)  # where the images are, if not in memory
        self._train_y, self._test_y = (y.to(self.device) for y in labels)
        self._current: tuple[Task, Samples] | None = None
        self._test: Samples | None = None
        self.test_ends = np.cumsum([len(task.test_index) for task in tasks])
        self.order_hash = order_hash(source.train_y)
        masks = torch.zeros(len(tasks), self.n_classes, dtype=torch.bool)  # the classes of each task
        for task in tasks:
            masks[task.id, list(task.classes)] = True
        self.class_masks = masks.to(self.device)

    @property
    def task_free(self) -> bool:
        """Whether the order of samples makes the stream, which then has no task boundaries."""
        return not all(task.shuffled for task in self.tasks)

    def joint(self) -> list[Task]:
        """One task that presents the training data of all of them and ends where the stream ends."""
        parts = tuple(task.id for task in self.tasks)
        return [replace(self.tasks[-1], parts=parts, classes=tuple(range(self.n_classes)), shuffled=True)]

    def cumulative(self) -> list[Task]:
        """The tasks, each presenting the training data of all up to its own."""
        return [replace(task, parts=tuple(range(task.id + 1)), shuffled=True) for task in self.tasks]

    def exclude(self, positions: Tensor) -> None:
        """Leave these positions of the source out of every task's training samples."""
        for i, task in enumerate(self.tasks):
            kept = task.train_index[~torch.isin(task.train_index, positions)]
            if not len(kept):
                raise UserError(f"--exclude leaves task {task.id} no training sample")
            self.tasks[i] = replace(task, train_index=kept)

    def train(self, task: Task) -> Samples:
        """The task's training samples in the order of the source; the last task asked for is kept.

        `x_raw` of images on disk is `Unread`.
        """
        if self._current is None or self._current[0] is not task:
            self._current = None  # free the previous task before the next is made
            n = sum(len(self.tasks[i].train_index) for i in task.parts)
            parts = (self._select("train", self.tasks[i], whole=True) for i in task.parts)
            self._current = (task, join(parts, n))
        return self._current[1]

    def test(self, n_tasks: int) -> Samples:
        """Test samples of the first `n_tasks` tasks, stacked in task order."""
        if self._test is None:
            self._test = join(map(self.test_of, self.tasks), self.test_ends[-1])
        return Samples(*(field[: self.test_ends[n_tasks - 1]] for field in self._test))

    def test_of(self, task: Task) -> Samples:
        """The task's test samples alone."""
        return self._select("test", task)

    def test_chunks(self, n_tasks: int, size: int) -> Iterator[Samples]:
        """What `test` gives, `size` samples at a time; too large a stack is never made (`STACK_BYTES`)."""
        end, starts = int(self.test_ends[n_tasks - 1]), [0, *self.test_ends.tolist()]
        if self.test_ends[-1] * prod(self.input_shape) <= STACK_BYTES[self.device.type]:
            chunks = zip(*(field.split(size) for field in self.test(n_tasks)), strict=True)
            yield from (Samples(*chunk) for chunk in chunks)
            return
        for start in range(0, end, size):
            stop = min(start + size, end)
            parts = (
                self._select("test", task, slice(max(start - first, 0), stop - first))
                for task, first, last in zip(self.tasks, starts, starts[1:], strict=False)
                if first < stop and start < last
            )
            yield join(parts, stop - start)

    def train_chunks(self, n_tasks: int, size: int) -> Iterator[Samples]:
        """Training samples of the first `n_tasks` tasks, at most `size` of one task at a time."""
        for task in self.tasks[:n_tasks]:
            for start in range(0, len(task.train_index), size):
                yield self._select("train", task, slice(start, start + size))

    def _select(self, split: str, task: Task, part: slice = slice(None), whole: bool = False) -> Samples:
        images, labels, index = {
            "train": (self._train_x, self._train_y, task.train_index),
            "test": (self._test_x, self._test_y, task.test_index),
        }[split]
        rows = index[part].to(self.device)
        if whole and isinstance(images, DiskImages):
            x = images.part(index, task.transform)
        else:
            x = task.transform(images.index_select(0, rows))
        return Samples(x, labels[rows] + task.label_shift, torch.full_like(rows, task.id), rows)

    def n_steps(self, task: Task, batch_size: int) -> int:
        """Steps per epoch, the last one possibly smaller."""
        return -(-sum(len(self.tasks[i].train_index) for i in task.parts) // batch_size)

    def batches(self, task: Task, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled, augmented batches of one epoch, from step `start` on.

        Order and augmentation depend only on (seed, task, epoch, block): a resumed epoch continues
        with exactly the batches that an uninterrupted one would have seen.
        """
        samples = self.train(task)
        n = len(samples.y)
        draws = seeding.generator(self.seed, "order", task.id, epoch)
        order = torch.randperm(n, generator=draws) if task.shuffled else torch.arange(n)
        image_bytes = 4 * prod(self.input_shape)
        per_block = max(1, BLOCK_BYTES[self.device.type] // image_bytes // batch_size) * batch_size
        first_block = start * batch_size // per_block
        blocks = in_turn(samples, order[first_block * per_block :], per_block)
        for block in range(first_block, -(-n // per_block)):
            draws = seeding.generator(self.seed, "augmentation", task.id, epoch, block, device=self.device)
            with one_thread():
                raw, *others = next(blocks)
                fields = (self.augment(raw, draws), raw, *others)
            batches = zip(*(field.split(batch_size) for field in fields), strict=True)
            first = block * per_block // batch_size
            for step, parts in enumerate(batches, first):
                if step >= start:
                    yield Batch(*parts)


def class_incremental(
    name: str, source: Source, augment: Augment, config, device, groups: list[str] | None = None
) -> Benchmark:
    """Classes split over tasks: task t owns consecutive labels of the (permuted) class order.

    groups: the group of each class (its alphabet); task t then owns the t-th group instead of an equal
    share, and `--permute_classes` permutes the groups.
    """
    stream, seed = config.stream, config.run.seed
    augment = normalised_as_asked(augment, config, source.train_x.shape[1])
    if groups:
        scenarios.refuse_order(stream.class_order, name, "whose tasks are groups of classes")
        order = scenarios.group_order(groups, seed, stream.permute_classes)
        split = scenarios.split_groups([groups[c] for c in order], stream.n_tasks)
    else:
        order = scenarios.class_order(len(source.classes), seed, stream.permute_classes, stream.class_order)
        split = scenarios.split_classes(len(order), stream.n_tasks, stream.half_classes_in_first_task)
    source, kept = with_validation(placed(source, config, device), stream.validation, seed)
    train_y, test_y = (scenarios.relabel(y.numpy(), order) for y in source.labels)
    tasks = []
    for i, classes in enumerate(split):
        train = np.intersect1d(scenarios.positions_of(train_y, classes), kept, assume_unique=True)
        test = scenarios.positions_of(test_y, classes)
        tasks.append(Task(i, classes, (i,), torch.from_numpy(train), torch.from_numpy(test)))
    scenario = stream.scenario or ("task-il" if stream.multi_head else "class-il")
    if scenario == "domain-il":
        tasks = scenarios.with_same_outputs(tasks)
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device)


def domain_incremental(
    name: str,
    source: Source,
    augment: Augment,
    changes: list[Callable],
    config,
    device,
    drawn: dict[str, list] | None = None,
    samples_per_task: int = 0,
) -> Benchmark:
    """The same classes in every task, each task's images changed by its own transform.

    changes: raw uint8 images → the task's, one for each task. drawn: what they were made from, to be saved.
    samples_per_task: at most so many training samples for each task, its own random choice (0: all).
    """
    stream, seed = config.stream, config.run.seed
    augment = normalised_as_asked(augment, config, source.train_x.shape[1])
    scenarios.refuse_order(stream.class_order, name, "whose tasks have all classes")
    order = scenarios.class_order(len(source.classes), seed, permute=False)
    source, kept = with_validation(placed(source, config, device), stream.validation, seed)
    test, classes = torch.arange(len(source.test_y)), tuple(range(len(source.classes)))
    tasks = []
    for i, change in enumerate(changes):
        train = torch.from_numpy(scenarios.subset(kept, samples_per_task, seed, i))
        tasks.append(Task(i, classes, (i,), train, test, change))
    scenario = stream.scenario or ("task-il" if stream.multi_head else "domain-il")
    if scenario == "class-il":
        tasks = scenarios.with_own_outputs(tasks)
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device, drawn)


def with_validation(
    source: Source, percent: float, seed: int, strata: Tensor | None = None
) -> tuple[Source, np.ndarray]:
    """The source whose test set is `percent` % of the training set, and the training positions kept.

    With 0 % the real test set stays; otherwise nothing downstream can reach it. strata: (N,), what the
    share is taken from each of; the labels by default.
    """
    if not percent:
        return source, np.arange(len(source.train_y))
    strata = source.train_y if strata is None else strata
    try:
        kept, held = scenarios.hold_out(strata.numpy(), percent, seed)
    except ValueError as error:  # a share of less than one sample per class
        raise UserError(f"--validation {percent}: cannot be taken from every class: {error}") from error
    held = torch.from_numpy(held)
    return replace(source, test_x=part_of(source.train_x, held), test_y=source.train_y[held]), kept
