"""RehearsalMethod: the base of every method that keeps samples of the past and trains on them again.

It owns the memory (`self.buffer`) and the flags that all such methods share, and says how a batch is drawn,
joined to the stream's and stored. A paper's file calls `with_replay` or `replay` in `loss` and `remember` in
`after_step`.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Method, Setup
from engram.utils.buffers.factory import ring_for
from engram.utils.buffers.memory import Memory
from engram.utils.buffers.reservoir import Buffer
from engram.utils.buffers.ring import RingMemory
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class ReplayOptions(OptionSet):
    """The size of the memory and of the batch that is drawn from it."""

    buffer_size: int = option(200, "samples kept in the memory; 0 turns replay off", ge=0)
    minibatch_size: int = option(0, "samples replayed per step; 0 takes --batch_size", ge=0)


class Examples(NamedTuple):
    """Inputs of the network with their labels: x (N, C, H, W) normalised float32, y (N,), task_id (N,)."""

    x: Tensor
    y: Tensor
    task_id: Tensor


class RehearsalMethod(Method):
    """A method with a memory of past samples; a uniform reservoir unless `make_buffer` says otherwise."""

    buffer: Memory
    rehearses = True
    # How `replay` draws: distinct samples, or independent ones that may be the same.
    with_replacement: bool = False
    off_switch: ClassVar[dict[str, Any] | str] = {"buffer_size": 0}

    options: ReplayOptions

    def __init__(self, net: Backbone, options: ReplayOptions, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.buffer = self.make_buffer()

    def make_buffer(self) -> Memory:
        """The empty memory; called once, before the subclass sets anything of its own."""
        return Buffer(self.options.buffer_size, self.setup.generator("buffer"), self.device)

    @property
    def n_replayed(self) -> int:
        """The number of samples that a step replays, as far as there are so many."""
        return self.options.minibatch_size or self.setup.train.batch_size

    def augmented(self, stored: dict[str, Tensor]) -> Examples:
        """Samples of the buffer as the network takes them, their images augmented as the stream's are."""
        return Examples(self.augment(stored["x"]), stored["y"], stored["task_id"])

    def replay(self, n: int | None = None) -> Examples | None:
        """`n` samples of the memory (default: `n_replayed`), augmented; None while it is empty."""
        if not self.buffer:
            return None
        n = self.n_replayed if n is None else n
        if self.with_replacement:
            return self.augmented(self.buffer.sample_with_replacement(min(n, len(self.buffer))))
        return self.augmented(self.buffer.sample(n))

    def with_replay(self, batch: Batch, replayed: Examples | None = None) -> Examples:
        """The stream's batch, followed by replayed samples (default: `replay()`): one pass serves both."""
        replayed = self.replay() if replayed is None else replayed
        if replayed is None:
            return Examples(batch.x, batch.y, batch.task_id)
        return Examples(
            torch.cat((batch.x, replayed.x)),
            torch.cat((batch.y, replayed.y)),
            torch.cat((batch.task_id, replayed.task_id)),
        )

    def remember(self, batch: Batch, **extra: Tensor) -> None:
        """Offer the batch, with `extra` fields (N, ...), to the memory, in a task's first epoch only.

        Each sample is offered once: offering it again in later epochs would make the reservoir count
        repetitions as new data and keep copies of one image.
        """
        if self.epoch == 0:
            fields = {"x": batch.x_raw, "y": batch.y, "task_id": batch.task_id, "index": batch.index}
            self.buffer.add(y_on_host=batch.y_on_host, **fields, **extra)

    def step_form(self) -> Hashable:
        """Whether samples are stored, as in a task's first epoch, and how many are replayed."""
        return self.epoch == 0, min(len(self.buffer), self.n_replayed)

    def separate_passes(self, *batches: Batch | Examples) -> list[Tensor]:
        """(N_i, C) unmasked logits of several batches, computed as if each were a pass of its own.

        With batch norm each is one. Without it samples do not affect each other, and a single pass over all
        gives the same in less time.
        """
        net = self.net
        if net.mixes_samples or len(batches) == 1:
            return [net(batch.x, batch.task_id) for batch in batches]
        x, task_id = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "task_id"))
        return list(net(x, task_id).split([len(batch.y) for batch in batches]))


class TaskRingMethod(RehearsalMethod):
    """A rehearsal method with a ring memory of equal size for every task (GEM, A-GEM, HAL)."""

    buffer: RingMemory
    needs_boundaries = True
    eager_step = "the rings of tasks are written at positions that the host counts"

    def make_buffer(self) -> RingMemory:
        """A ring per task; raises `UserError` for a size that leaves a task without a slot."""
        return ring_for(type(self).__name__, self.options.buffer_size, self.setup)

    def past_tasks(self) -> list[int]:
        """The ids of the earlier tasks of which samples are stored."""
        return [task for task in self.buffer.tasks() if task != self.task.id]

    def remember(self, batch: Batch, **extra: Tensor) -> None:
        """Write the batch to the current task's ring, in the task's first epoch only."""
        if self.epoch == 0:
            fields = {"x": batch.x_raw, "y": batch.y, "task_id": batch.task_id, "index": batch.index}
            self.buffer.add(self.task.id, **fields, **extra)
