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

import torch

from engram.models.method import Method
from engram.models.parts.inference import features
from engram.models.parts.inner_steps import weighted_loss
from engram.models.parts.replay import Replayed, augmented, draw, joined, replayed_per_step
from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import UnlimitedBuffer
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the full buffer."""

    minibatch_size: int = option(0, "samples replayed per step; 0 takes --batch_size", ge=0)
    order: str = option("uniform", "in which old samples are replayed", choices=("uniform", "grasp"))


class FullBuffer(Method):
    """ER with room for all."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = UnlimitedBuffer(setup.generator("buffer"), self.device)
        self.draws = setup.generator("method")
        self.queue = torch.zeros(0, dtype=torch.long, device=self.device)  # grasp: slots yet to be replayed

    def begin_task(self, task):
        """GRASP: draw the whole task's replay."""
        if self.options.order == "grasp" and self.buffer:
            held, n = self.buffer.stored(), self.setup.n_steps(task) * replayed_per_step(self)
            self.queue = selection.grasp(features(self, held["x"]), held["y"], n, self.draws)

    def replay(self) -> Replayed | None:
        """The samples of a step."""
        if not len(self.queue):
            return draw(self)
        n = replayed_per_step(self)
        slots, self.queue = self.queue[:n], self.queue[n:]
        return augmented(self, self.buffer.at(slots))

    def loss(self, batch):
        """ER's."""
        return weighted_loss(self, Replayed(*joined(batch, self.replay())))

    def end_task(self, task):
        """Keep the task."""
        x, y, task_id, index = self.setup.benchmark.train(task)
        self.buffer.add(x=x, y=y, task_id=task_id, index=index)
