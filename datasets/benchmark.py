"""Batch, Task and Benchmark: a source of images, split into a stream of tasks, living on the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets import scenarios
from datasets.augment import Augment
from datasets.sources import Source
from utils import seeding
from utils.device import one_thread
from utils.errors import UserError
from utils.scores import order_hash

# Images augmented in one call, in bytes of float32: large enough to spread the cost of a call over
# many small batches, small enough to stay in a CPU's cache.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 128 << 20}


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


def identity(raw: Tensor) -> Tensor:
    """The transform of class-incremental tasks."""
    return raw


@dataclass(frozen=True)
class Task:
    """One step of the stream.

    id: position in the stream. classes: labels that occur. parts: the tasks whose training data this
    one presents (its own; a joint run presents all). train_index, test_index: positions in the
    source. transform: raw uint8 images → the task's uint8 images (permuted, rotated).
    """

    id: int
    classes: tuple[int, ...]
    parts: tuple[int, ...]
    train_index: Tensor
    test_index: Tensor
    transform: Callable[[Tensor], Tensor] = identity


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
        self.augment, self.class_order, self.seed = augment, class_order, seed
        self.device = torch.device(device)
        self.n_classes, self.n_train = len(source.classes), len(source.train_y)
        self.input_shape = tuple(source.train_x.shape[1:])
        self.class_names = [source.classes[c] for c in class_order]
        labels = [torch.from_numpy(scenarios.relabel(y.numpy(), class_order)) for y in source.labels]
        self._train_x, self._test_x = (x.to(self.device) for x in (source.train_x, source.test_x))
        self._train_y, self._test_y = (y.to(self.device) for y in labels)
        self._current: tuple[Task, Samples] | None = None
        self._test: Samples | None = None
        self.test_ends = np.cumsum([len(task.test_index) for task in tasks])
        self.order_hash = order_hash(source.train_y)
        # (T, C) bool: the classes of each task
        masks = torch.zeros(len(tasks), self.n_classes, dtype=torch.bool)
        for task in tasks:
            masks[task.id, list(task.classes)] = True
        self.class_masks = masks.to(self.device)

    def joint(self) -> list[Task]:
        """One task that presents the training data of all of them and ends where the stream ends."""
        parts = tuple(task.id for task in self.tasks)
        return [replace(self.tasks[-1], parts=parts, classes=tuple(range(self.n_classes)))]

    def train(self, task: Task) -> Samples:
        """The task's training samples in the order of the source; the last task asked for is kept."""
        if self._current is None or self._current[0] is not task:
            self._current = None  # free the previous task before the next is made
            parts = [self._select("train", self.tasks[i]) for i in task.parts]
            joined = parts[0] if len(parts) == 1 else Samples(*map(torch.cat, zip(*parts, strict=True)))
            self._current = (task, joined)
        return self._current[1]

    def test(self, n_tasks: int) -> Samples:
        """Test samples of the first `n_tasks` tasks, stacked in task order."""
        if self._test is None:
            parts = [self._select("test", task) for task in self.tasks]
            self._test = Samples(*map(torch.cat, zip(*parts, strict=True)))
        return Samples(*(field[: self.test_ends[n_tasks - 1]] for field in self._test))

    def _select(self, split: str, task: Task) -> Samples:
        images, labels, index = {
            "train": (self._train_x, self._train_y, task.train_index),
            "test": (self._test_x, self._test_y, task.test_index),
        }[split]
        rows = index.to(self.device)
        return Samples(
            task.transform(images.index_select(0, rows)), labels[rows], torch.full_like(rows, task.id), rows
        )

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
        order = torch.randperm(n, generator=seeding.generator(self.seed, "order", task.id, epoch))
        order = order.to(self.device)
        image_bytes = 4 * samples.x_raw[0].numel()
        per_block = max(1, BLOCK_BYTES[self.device.type] // image_bytes // batch_size) * batch_size
        for block in range(start * batch_size // per_block, -(-n // per_block)):
            rows = order[block * per_block : (block + 1) * per_block]
            draws = seeding.generator(self.seed, "augmentation", task.id, epoch, block, device=self.device)
            with one_thread():
                # index_select copies whole images; indexing with [rows] is 30 times slower on a CPU
                raw, *others = (field.index_select(0, rows) for field in samples)
                fields = (self.augment(raw, draws), raw, *others)
            batches = zip(*(field.split(batch_size) for field in fields), strict=True)
            first = block * per_block // batch_size
            for step, parts in enumerate(batches, first):
                if step >= start:
                    yield Batch(*parts)


def class_incremental(name: str, source: Source, augment: Augment, config, device) -> Benchmark:
    """Classes split over tasks: task t owns consecutive labels of the (permuted) class order."""
    stream, seed = config.stream, config.run.seed
    order = scenarios.class_order(len(source.classes), seed, stream.permute_classes)
    source, kept = with_validation(source, stream.validation, seed)
    train_y, test_y = (scenarios.relabel(y.numpy(), order) for y in source.labels)
    tasks = []
    for i, classes in enumerate(scenarios.split_classes(len(order), stream.n_tasks)):
        train = np.intersect1d(scenarios.positions_of(train_y, classes), kept, assume_unique=True)
        test = scenarios.positions_of(test_y, classes)
        tasks.append(Task(i, classes, (i,), torch.from_numpy(train), torch.from_numpy(test)))
    scenario = "task-il" if stream.multi_head else "class-il"
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device)


def domain_incremental(
    name: str,
    source: Source,
    augment: Augment,
    changes: list[Callable],
    config,
    device,
    drawn: dict[str, list] | None = None,
) -> Benchmark:
    """The same classes in every task, each task's images changed by its own transform.

    changes: raw uint8 images → the task's uint8 images, one for each task. drawn: what they were made
    from, to be saved with the run.
    """
    stream, seed = config.stream, config.run.seed
    order = scenarios.class_order(len(source.classes), seed, permute=False)
    source, kept = with_validation(source, stream.validation, seed)
    train, test = torch.from_numpy(kept), torch.arange(len(source.test_y))
    classes = tuple(range(len(source.classes)))
    tasks = [Task(i, classes, (i,), train, test, change) for i, change in enumerate(changes)]
    scenario = "task-il" if stream.multi_head else "domain-il"
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device, drawn)


def with_validation(source: Source, percent: float, seed: int) -> tuple[Source, np.ndarray]:
    """The source whose test set is `percent` % of the training set, and the training positions kept.

    With 0 % the real test set stays; otherwise nothing downstream can reach it.
    """
    if not percent:
        return source, np.arange(len(source.train_y))
    try:
        kept, held = scenarios.hold_out(source.train_y.numpy(), percent, seed)
    except ValueError as error:  # a share of less than one sample per class
        raise UserError(f"--validation {percent}: cannot be taken from every class: {error}") from error
    held = torch.from_numpy(held)
    return replace(source, test_x=source.train_x[held], test_y=source.train_y[held]), kept
