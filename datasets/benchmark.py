"""Batch, Samples, Task and Benchmark: a stream of tasks on the training device; `streams.py` builds it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram.datasets import scenarios
from engram.datasets.augment import Augment
from engram.datasets.lazy_images import DiskImages, LazyImages, Transform, identity, prefetched
from engram.datasets.sources import Source
from engram.utils import seeding
from engram.utils.device import OneThread
from engram.utils.scores import order_hash
from engram.utils.transfer import send

# Images augmented in one call, in bytes of float32: large enough to spread the cost of a call over
# many small batches, small enough to stay in a CPU's cache.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 128 << 20}
# Test images of all tasks are transformed once and kept up to this many bytes, beyond it at every evaluation.
STACK_BYTES = {"cpu": 512 << 20, "cuda": 4 << 30}


class Batch(NamedTuple):
    """What a method sees in one step; all tensors but the last on the training device.

    x: (N, C, H, W) float32, augmented and normalised. x_raw: (N, C, H, W) uint8, as in the data set.
    y: (N,) labels. task_id: (N,). index: (N,) positions in the original training set. y_on_host: the labels
    in host memory, for decisions that are made there.
    """

    x: Tensor
    x_raw: Tensor
    y: Tensor
    task_id: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    y_on_host: Tensor

    def rows(self, rows: slice) -> "Batch":
        """The batch of some of its samples, in all fields."""
        return Batch(*(field[rows] for field in self))


class Samples(NamedTuple):
    """Un-augmented samples on the device: `Batch` without `x`.

    Images that stay on disk are `LazyImages`, which have the part of a tensor's interface that methods use.
    """

    x_raw: Tensor
    y: Tensor
    task_id: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls


@dataclass(frozen=True)
class Task:
    """One step of the stream.

    id: position in the stream. classes: labels that occur. parts: ids of the tasks whose training data this
    one presents (its own; a joint run presents all). train_index, test_index: (N,) positions in the
    source. transform: raw uint8 images → the task's uint8 images (permuted, rotated). label_shift: what
    is added to the source's labels. shuffled: False where training samples come in the order of
    train_index, in every epoch.
    """

    id: int
    classes: tuple[int, ...]
    parts: tuple[int, ...]
    train_index: Tensor
    test_index: Tensor
    transform: Transform = identity
    label_shift: int = 0
    shuffled: bool = True


class Benchmark:
    """A data set, a scenario, a class order and a seed: the stream that a method learns.

    scenario: `class-il` or `domain-il`, or `task-il` when every task has its own head.
    transforms: what was drawn for the tasks' transforms (angles, permutations), to be saved with the run.
    train_classes: class-il: the classes of the training softmax, `all`, `seen` or `task` (`--train_classes`).
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
        transforms: Mapping[str, Sequence[object]] | None = None,
        train_classes: str = "all",
    ):
        self.build_seconds = 0.0  # that reading the data took; models/build.py sets it
        self.transforms, self.split_hash = transforms or {}, source.split_hash
        self.notes = [*source.notes, *augment.notes(source.train_x.shape[1:])]  # said when a run starts
        self.name, self.scenario, self.tasks = name, scenario, tasks
        self.seed, self.train_classes, self.device = seed, train_classes, torch.device(device)
        self.n_classes, self.n_train = 1 + max(c for task in tasks for c in task.classes), len(source.train_y)
        labels = [torch.from_numpy(scenarios.relabel(y.numpy(), class_order)) for y in source.labels]
        n_sources = 1 + max(task.classes[-1] - task.label_shift for task in tasks)
        self.class_order = class_order[:n_sources]  # classes that no task has come last
        self.class_names = [source.classes[c] for c in self.class_order]
        self.hold(source.train_x, source.test_x, augment)
        self._train_y, self._test_y = (y.to(self.device) for y in labels)
        self._train_y_on_host = labels[0]
        self.test_ends = np.cumsum([len(task.test_index) for task in tasks])
        self.source_labels = source.train_y  # (n_train,), before classes were put in order
        self.order_hash = order_hash(source.train_y)
        masks = torch.zeros(len(tasks), self.n_classes, dtype=torch.bool)  # the classes of each task
        for task in tasks:
            masks[task.id, list(task.classes)] = True
        self.class_masks = masks.to(self.device)

    def hold(self, train_x: Tensor, test_x: Tensor, augment: Augment) -> None:
        """Let these be the samples: images, or what an encoder makes of them in the same order."""
        self.augment, self.stored_shape = augment, tuple(train_x.shape[1:])
        self.input_shape = augment.shape_of(self.stored_shape)  # as the network sees a sample
        self.sample_bytes = prod(self.stored_shape) * train_x.dtype.itemsize
        self.on_disk: str | None = getattr(train_x, "note", None)  # where and why, if not in memory
        self.samples = {"train": train_x.to(self.device), "test": test_x.to(self.device)}
        self._current: tuple[Task, Samples] | None = None
        self._test: Samples | None = None

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

    @property
    def train_labels(self) -> Tensor:
        """(n_train,) labels that are trained on, before a task shifts them, on the CPU."""
        return self._train_y.cpu()

    @train_labels.setter
    def train_labels(self, y: Tensor) -> None:
        self._train_y = y.to(self.device)

    def train(self, task: Task) -> Samples:
        """The task's training samples in the order of the source; the last task's stay in memory.

        `x_raw` of images on disk is `LazyImages`.
        """
        if self._current is None or self._current[0] is not task:
            self._current = None  # free the previous task before the next is made
            parts = (self._select("train", self.tasks[i], lazy=True) for i in task.parts)
            self._current = (task, concatenate(parts, self.n_samples(task)))
        return self._current[1]

    def test(self, n_tasks: int) -> Samples:
        """Test samples of the first `n_tasks` tasks, stacked in task order."""
        if self._test is None:
            self._test = concatenate(map(self.test_of, self.tasks), int(self.test_ends[-1]))
        return Samples(*(field[: self.test_ends[n_tasks - 1]] for field in self._test))

    def test_of(self, task: Task) -> Samples:
        """The task's test samples alone."""
        return self._select("test", task)

    def test_chunks(self, n_tasks: int, size: int, positions: Tensor | None = None) -> Iterator[Samples]:
        """The samples of `test`, `size` at a time; too large a stack is never made (`STACK_BYTES`).

        positions: (K,) ascending, on the CPU: take these of the samples only.
        """
        if self.test_ends[-1] * self.sample_bytes > STACK_BYTES[self.device.type]:
            end = int(self.test_ends[n_tasks - 1])
            rows = torch.arange(end) if positions is None else positions
            yield from map(self._test_rows, rows.split(size))
        elif positions is None:
            chunks = zip(*(field.split(size) for field in self.test(n_tasks)), strict=True)
            yield from (Samples(*chunk) for chunk in chunks)
        else:
            stack = self.test(n_tasks)
            for rows in send(positions, self.device).split(size):
                yield Samples(*(field.index_select(0, rows) for field in stack))

    def _test_rows(self, rows: Tensor) -> Samples:
        """Samples at ascending positions (n,) of the stack, which is not made."""
        starts, lowest, highest = [0, *self.test_ends.tolist()], int(rows[0]), int(rows[-1])
        overlapping = (
            self._select("test", task, rows[(rows >= start) & (rows < end)] - start)
            for task, start, end in zip(self.tasks, starts, starts[1:], strict=False)
            if start <= highest and lowest < end
        )
        return concatenate((samples for samples in overlapping if len(samples.y)), len(rows))

    def train_chunks(self, n_tasks: int, size: int) -> Iterator[Samples]:
        """Training samples of the first `n_tasks` tasks, at most `size` of one task at a time."""
        for task in self.tasks[:n_tasks]:
            for start in range(0, len(task.train_index), size):
                yield self._select("train", task, slice(start, start + size))

    def _select(
        self, split: str, task: Task, rows: slice | Tensor = slice(None), lazy: bool = False
    ) -> Samples:
        """The task's own samples of a split, or some rows of them. lazy: images on disk stay there."""
        images, is_training = self.samples[split], split == "train"
        labels, index = (self._train_y, task.train_index) if is_training else (self._test_y, task.test_index)
        positions = index[rows].to(self.device)
        if lazy and isinstance(images, DiskImages):
            x = images.subset(index[rows], task.transform)
        else:
            x = task.transform(images.index_select(0, positions))
        y = labels[positions] + task.label_shift
        return Samples(x, y, torch.full_like(positions, task.id), positions)

    def labels_on_host(self, task: Task) -> Tensor:
        """(N,) the labels of `train(task)` in host memory."""
        own = (self.tasks[i] for i in task.parts)
        return torch.cat([self._train_y_on_host[task.train_index] + task.label_shift for task in own])

    def n_samples(self, task: Task) -> int:
        """Training samples that the task presents in an epoch."""
        return sum(len(self.tasks[i].train_index) for i in task.parts)

    def n_steps(self, task: Task, batch_size: int) -> int:
        """Steps per epoch; the last batch may be smaller."""
        return -(-self.n_samples(task) // batch_size)

    def batches(self, task: Task, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled, augmented batches of one epoch, from step `start` on.

        Order and augmentation depend only on (seed, task, epoch, block): a resumed epoch continues
        with exactly the batches that an uninterrupted one would have seen.
        """
        samples = self.train(task)
        n = len(samples.y)
        generator = seeding.generator(self.seed, "order", task.id, epoch)
        order = torch.randperm(n, generator=generator) if task.shuffled else torch.arange(n)
        image_bytes = 4 * max(prod(self.stored_shape), prod(self.input_shape))
        per_block = max(1, BLOCK_BYTES[self.device.type] // image_bytes // batch_size) * batch_size
        labels = self.labels_on_host(task).index_select(0, order)
        first_block = start * batch_size // per_block
        blocks = in_blocks(samples, order[first_block * per_block :], per_block)
        for block in range(first_block, -(-n // per_block)):
            generator = seeding.generator(
                self.seed, "augmentation", task.id, epoch, block, device=self.device
            )
            with OneThread():
                raw, *others = next(blocks)
                y_on_host = labels[block * per_block : (block + 1) * per_block]
                fields = (self.augment(raw, generator), raw, *others, y_on_host)
            batches = zip(*(field.split(batch_size) for field in fields), strict=True)
            first_step = block * per_block // batch_size
            for step, batch in enumerate(batches, first_step):
                if step >= start:
                    yield Batch(*batch)


def concatenate(parts: Iterable[Samples], n: int) -> Samples:
    """Samples one part after the other, `n` in all; of parts made on the way only one is held at a time."""
    whole, start = None, 0
    for samples in parts:
        if len(samples.y) == n:
            return samples
        if isinstance(samples.x_raw, LazyImages):
            return Samples(*map(torch.cat, zip(samples, *parts, strict=True)))
        if whole is None:
            whole = Samples(*(field.new_empty(n, *field.shape[1:]) for field in samples))
        for target, field in zip(whole, samples, strict=True):
            target[start : start + len(field)] = field
        start += len(samples.y)
    assert whole is not None, "a benchmark has at least one task"
    return whole


def in_blocks(samples: Samples, order: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """The fields of samples, images first, in the order (N,) given, `size` at a time.

    Images on disk are prefetched, by threads that end with the iterator.
    """
    images, *others = samples
    blocks = send(order, samples.y.device).split(size)
    if isinstance(images, LazyImages):
        read = prefetched(images, order.split(size))
        return (
            (raw, *(field.index_select(0, rows) for field in others))
            for raw, rows in zip(read, blocks, strict=True)
        )
    # index_select copies whole images; indexing with [rows] is 30 times slower on a CPU
    return (tuple(field.index_select(0, rows) for field in samples) for rows in blocks)
