"""Memorization-aware Experience Replay (maer): keep samples by how strongly they are memorized.

Source: Kozal et al. 2025, "What is the role of memorization in Continual Learning?" (arXiv
2505.17664), Section 5 and Algorithm 1. ER with a class-balanced reservoir; when a task ends, its
slots in the memory go to the samples that `--buffer_policy` takes from the order in which samples
were learned (early = low memorization), the same number for every class. `--mem_proxy` takes another
guess of memorization than that order, or the scores of a file.
Differs from the paper's code: every policy is class-balanced (there 0.1min, 0.9max and randomized are
not); given scores follow sample positions under permuted classes (there they were misaligned); with
several epochs a sample is offered to the memory once; no slot is lost when the number chosen is odd.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.models.parts.memorization import MemorizationOptions, MemorizationReplay
from engram.utils.buffers.weighted_reservoirs import BalancedBuffer


@dataclass(frozen=True)
class Options(MemorizationOptions):
    """The flags of maer: those of every method that chooses by memorization."""


class MAER(MemorizationReplay):
    """ER whose memory is rewritten at the end of each task."""

    options: Options
    joins_replay = True
    eager_step = ""

    def make_buffer(self) -> BalancedBuffer:
        """A reservoir that evicts from the most populated class."""
        n_classes, draws = self.benchmark.n_classes, self.setup.generator("buffer")
        return BalancedBuffer(self.options.buffer_size, n_classes, draws, self.device)

    def loss(self, batch: Batch) -> Tensor:
        """ER's loss; what the network says of the stream's samples is noted on the way."""
        samples = self.with_replay(batch)
        logits = self.logits(samples.x, samples.task_id)
        self.chooser.watch(batch, logits.detach()[: batch.y.shape[0]])
        return F.cross_entropy(logits, samples.y)

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the class-balanced reservoir."""
        self.remember(batch)
