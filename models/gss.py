"""Gradient-based Sample Selection (GSS), greedy: a memory whose samples' gradients point apart.

Source: Aljundi et al. 2019, "Gradient based sample selection for online continual learning" (arXiv
1903.08671), Algorithm 2. A sample's score is 1 + the largest cosine similarity of its loss gradient with
those of n samples drawn from the memory; a full memory takes a sample whose score is below 1 with
probability C_i / (C_i + c), in place of the i-th, drawn with probability ∝ C_i. Replay as in ER, with raw
images. Gradients are exact and per sample, in eval mode, of un-augmented images, after the step.
Differs from the paper and its code: every sample is judged by itself against single samples' gradients
(the code first asks whether the whole batch points away from a few batches' gradients); the slots of a
batch are drawn together, as in the code; one step on each batch (the paper's experiments take several);
with several epochs a sample is offered once. The first batch has score 0.1, as in the code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.similarity import GradientSimilarity
from engram.models.rehearsal import Examples, RehearsalMethod, ReplayOptions
from engram.utils.buffers import selection
from engram.utils.config.options import option

FIRST_SCORE = 0.1


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of GSS."""

    gss_minibatch_size: int = option(10, "samples n of the memory that a new sample is compared with", ge=1)


class GSS(RehearsalMethod):
    """ER whose memory prefers samples unlike those it holds."""

    options: Options
    joins_replay = True
    eager_step = "how many samples compete for the memory differs from step to step"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the stream's batch and one drawn from the memory, as in ER."""
        samples = self.with_replay(batch)
        return F.cross_entropy(self.logits(samples.x, samples.task_id), samples.y)

    def after_step(self, batch: Batch) -> None:
        """Fill the memory; once it is full, let the batch compete for its slots."""
        if self.epoch or not self.options.buffer_size:
            return
        score = self.scores(batch)
        free = max(0, self.buffer.size - len(self.buffer))
        if free:
            self.remember(batch.rows(slice(free)), score=score[:free])
        if free < len(batch.y):
            self.compete(batch.rows(slice(free, None)), score[free:])

    def scores(self, batch: Batch) -> Tensor:
        """(N,) of the batch's samples."""
        if not self.buffer:
            return torch.full((len(batch.y),), FIRST_SCORE, device=self.device)
        memory = self.buffer.sample(self.options.gss_minibatch_size)
        normalise = self.benchmark.augment.normalise
        offered = Examples(normalise(batch.x_raw), batch.y, batch.task_id)
        stored = Examples(normalise(memory["x"]), memory["y"], memory["task_id"])
        return 1 + GradientSimilarity(self).cosines(offered, stored).amax(1).float()

    def compete(self, batch: Batch, score: Tensor) -> None:
        """Algorithm 2, lines 8 to 14: the device alone knows who wins, so losers are written back."""
        slots, wins = selection.gss_greedy(self.buffer.fields["score"], score, self.draws)
        offered = {"x": batch.x_raw, "y": batch.y, "task_id": batch.task_id, "index": batch.index}
        offered, winners = offered | {"score": score}, {}
        for name, old in self.buffer.at(slots).items():
            new = offered[name][: len(slots)]
            winners[name] = torch.where(wins.view(-1, *[1] * (old.dim() - 1)), new, old)
        self.buffer.replace(slots, **winners)
