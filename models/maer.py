"""Memorization-aware Experience Replay (maer): keep samples by how strongly they are memorized.

Source: Kozal et al. 2025, "What is the role of memorization in Continual Learning?" (arXiv
2505.17664), Section 5 and Algorithm 1. ER with a class-balanced reservoir; when a task ends, its
places in the memory go to the samples that `--buffer_policy` takes from the order in which samples
were learned (early = low memorization), the same number for every class. `--mem_proxy` takes another
guess of memorization than that order, or the scores of a file.
Differs from the paper's code: every policy is class-balanced (there 0.1min, 0.9max and randomized are
not); given scores follow sample positions under permuted classes (there they were misaligned); with
several epochs a sample is offered to the memory once; no place is lost when the number chosen is odd.
"""

import torch.nn.functional as F

from engram.models.method import Method
from engram.models.parts.memorization import MemorizationOptions as Options
from engram.models.parts.memorization import MemorizationSelector, replace_task_samples
from engram.models.parts.replay import draw, joined, store
from engram.utils.buffers.weighted_reservoirs import BalancedBuffer

__all__ = ["MAER", "Options"]


class MAER(Method):
    """ER whose memory is rewritten at the end of each task."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        n_classes, draws = setup.benchmark.n_classes, setup.generator("buffer")
        self.buffer = BalancedBuffer(options.buffer_size, n_classes, draws, self.device)
        self.chooser = MemorizationSelector(self, options.buffer_policy)

    def begin_task(self, task):
        """Memorization is the task's own."""
        self.chooser.begin()

    def loss(self, batch):
        """ER's loss; what the network says of the stream's samples is noted on the way."""
        x, y, task_id = joined(batch, draw(self))
        logits = self.logits(x, task_id)
        self.chooser.watch(batch, logits[: len(batch.y)])
        return F.cross_entropy(logits, y)

    def after_step(self, batch):
        """Class-balanced reservoir update."""
        store(self, batch)

    def end_task(self, task):
        """Give the task's places in the memory to the samples that the policy chooses."""
        replace_task_samples(self, task, self.chooser)
