"""Replay of everything: ER whose memory keeps all samples of past tasks, the upper bound of buffers.

Source: Kozal et al. 2025 (arXiv 2505.17664), the `full_buffer` line of their figures: every step joins a
batch of the stream and one drawn from all past tasks, which enter the memory when their task ends. `--order
grasp` draws with GRASP instead (Harun et al. 2025, arXiv 2308.13646, `selection.grasp`): classes in turn,
prototypes first, with distances of the features that the network has when the task begins (eval mode,
un-augmented).
Differs from that code: samples of a replayed batch are distinct draws (there a random order of everything
is made once for each task). Images are stored raw, on the device.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.rehearsal import Examples, RehearsalMethod, ReplayOptions
from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import UnlimitedBuffer
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of the full buffer, whose memory has no size."""

    buffer_size: ClassVar[None] = None
    order: str = option("uniform", "in which old samples are replayed", choices=("uniform", "grasp"))


class FullBuffer(RehearsalMethod):
    """ER with room for all."""

    options: Options
    needs_boundaries = True
    off_switch = "it keeps every sample of the past"
    eager_step = "the queue of samples to replay is cut on the host"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.queue = torch.zeros(0, dtype=torch.long, device=self.device)  # grasp: slots yet to be replayed

    def make_buffer(self) -> UnlimitedBuffer:
        """A memory that grows with the stream."""
        return UnlimitedBuffer(self.setup.generator("buffer"), self.device)

    def begin_task(self, task: Task) -> None:
        """With GRASP: draw the order of the whole task's replay."""
        if self.options.order == "grasp" and self.buffer:
            stored, n = self.buffer.stored(), self.setup.n_steps(task) * self.n_replayed
            self.queue = selection.grasp(self.features(stored["x"]), stored["y"], n, self.draws)

    def replay(self, n: int | None = None) -> Examples | None:
        """Distinct samples of all past tasks; with GRASP the next of its order."""
        if not len(self.queue):
            return super().replay(n)
        n = self.n_replayed if n is None else n
        slots, self.queue = self.queue[:n], self.queue[n:]
        return self.augmented(self.buffer.at(slots))

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the stream's batch and one of past tasks, as in ER."""
        samples = self.with_replay(batch)
        return F.cross_entropy(self.logits(samples.x, samples.task_id), samples.y)

    def end_task(self, task: Task) -> None:
        """All samples of the task enter the memory."""
        x, y, task_id, index = self.benchmark.train(task)
        self.buffer.add(x=x, y=y, task_id=task_id, index=index)
