"""Memorization-aware Experience Replay (maer): keep samples by how strongly they are memorized.

Source: Kozal et al. 2025, "What is the role of memorization in Continual Learning?" (arXiv
2505.17664), Section 5 and Algorithm 1. ER with a class-balanced reservoir; when a task ends, its
places in the memory go to the samples that `--buffer_policy` takes from the order in which samples
were learned (early = low memorization), the same number for every class.
Differs from the paper's code: every policy is class-balanced (there 0.1min, 0.9max and randomized are
not); given scores follow sample positions under permuted classes (there they were misaligned); with
several epochs a sample is offered to the memory once; no place is lost when the number chosen is odd.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.method import Method
from models.parts.learning import NEVER, LearningOrder
from models.parts.replay import ReplayOptions, draw, joined, store
from utils import scores, selection
from utils.options import option
from utils.reservoirs import BalancedBuffer


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of maer."""

    buffer_policy: str = option(
        "min", "memorization of the samples kept: lowest, highest, middle, ...", choices=selection.POLICIES
    )
    memorization_scores: str | None = option(
        None, "choose by the scores in this file (.npz or .npy) instead of the learning order"
    )


class MAER(Method):
    """ER whose memory is rewritten at the end of each task."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        benchmark = setup.benchmark
        self.buffer = BalancedBuffer(
            options.buffer_size, benchmark.n_classes, setup.generator("buffer"), self.device
        )
        self.learned = LearningOrder(benchmark.n_train, self.device)
        self.draws = setup.generator("method")
        self.given = None
        if options.memorization_scores:
            given = scores.read(options.memorization_scores, benchmark.n_train, benchmark.order_hash)
            self.given = given.to(self.device)

    def begin_task(self, task):
        """The learning order is the task's own."""
        self.learned.reset()

    def loss(self, batch):
        """ER's loss; what the network predicts right on the stream's samples is noted on the way."""
        x, y, task_id = joined(batch, draw(self))
        logits = self.logits(x, task_id)
        self.learned.update(batch.index, logits[: len(batch.y)].detach().argmax(1) == batch.y)
        return F.cross_entropy(logits, y)

    def after_step(self, batch):
        """Class-balanced reservoir update."""
        store(self, batch)

    def end_task(self, task):
        """Give the task's places in the memory to the samples that the policy chooses."""
        if not len(self.buffer):
            return
        samples = self.setup.benchmark.train(task)
        memorization = self._memorization(samples.index)
        places = torch.nonzero(self.buffer.stored()["task_id"] == task.id).view(-1)
        candidates = torch.argsort(memorization, stable=True)
        candidates = candidates[memorization[candidates] < NEVER]
        weights = memorization.double() + (1 if self.given is None else 0)
        chosen = selection.class_balanced(
            candidates, samples.y, len(places), self.options.buffer_policy, weights, self.draws
        )
        x, y, task_id, index = (field[chosen] for field in samples)
        self.buffer.replace(places[: len(chosen)], x=x, y=y, task_id=task_id, index=index)

    def _memorization(self, index: torch.Tensor) -> torch.Tensor:
        """(n,) ascending memorization of the samples `index`; NEVER where no order is known."""
        return (self.learned.when if self.given is None else self.given)[index]
