"""Experience Replay (ER) with a reservoir memory.

Source: Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486),
Algorithm 1 with the reservoir of Algorithm 2; Riemer et al. 2019.
Differs from the paper: with several epochs a sample is offered to the memory once, not once per epoch.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from models.method import Method
from models.parts.replay import ReplayOptions, draw, joined, store
from utils.buffer import Buffer


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of ER: those of every replay method."""


class ER(Method):
    """Cross-entropy on the stream's batch and one drawn from the memory, together."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)

    def loss(self, batch):
        """Mean over stream and replayed samples."""
        x, y, task_id = joined(batch, draw(self))
        return F.cross_entropy(self.logits(x, task_id), y)

    def after_step(self, batch):
        """Reservoir update, after training on the batch."""
        store(self, batch)
