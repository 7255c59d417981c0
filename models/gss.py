"""Gradient-based Sample Selection (GSS), greedy: a memory whose samples' gradients point apart.

Source: Aljundi et al. 2019, "Gradient based sample selection for online continual learning" (arXiv
1903.08671), Algorithm 2, by the rule of the code with which Buzzega et al. 2020 (DER, arXiv 2004.07211) ran
it (mammoth). A score is 1 + the largest cosine similarity of a gradient with those of n single samples of
the memory. The gradient of the whole batch decides: where its score is below 1, every sample draws a slot i
with probability ∝ C_i and takes it with probability C_i / (C_i + c), c its own score, which then is C_i.
What enters while the memory has free slots gets the batch's score; the first batch 0.1. Replay as in ER,
with raw images; `--batch_num` steps on each batch, after which gradients are taken, in eval mode, of
un-augmented images.
`--gss_rule sample` is Algorithm 2 to the letter: only samples whose own c is below 1 compete, all with
scores of their own; the slots of a batch are drawn together, without replacement.
Differs from that code: images are normalised before gradients are taken, steps on one batch draw their
replayed samples independently, and with several epochs a sample is offered once. The first authors' code
compares with the gradients of n batches of the memory and rescales the chances by the scores' range.
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

    gss_minibatch_size: int = option(10, "samples n of the memory that new ones are compared with", ge=1)
    gss_rule: str = option(
        "batch", "whose gradient lets samples compete: the batch's or its own", choices=("batch", "sample")
    )
    batch_num: int = option(1, "training steps on each batch, each with another batch of the memory", ge=1)


class GSS(RehearsalMethod):
    """ER whose memory prefers samples unlike those it holds."""

    options: Options
    joins_replay = True
    eager_step = "how many samples compete for the memory differs from step to step"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """`--batch_num` steps on the batch; then it is offered to the memory. The loss is the last step's."""
        for _ in range(self.options.batch_num):
            scalars = super().observe(batch)
        self.select(batch)
        return scalars

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the stream's batch and one drawn from the memory, as in ER."""
        samples = self.with_replay(batch)
        return F.cross_entropy(self.logits(samples.x, samples.task_id), samples.y)

    def select(self, batch: Batch) -> None:
        """Fill the memory; once it is full, let the batch compete for its slots."""
        if self.epoch or not self.options.buffer_size:
            return
        score, batch_score = self.scores(batch)
        free = max(0, self.buffer.size - len(self.buffer))
        if free:
            first = batch_score.expand(len(score)) if self.options.gss_rule == "batch" else score
            self.remember(batch.rows(slice(free)), score=first[:free])
        if free < len(batch.y):
            self.compete(batch.rows(slice(free, None)), score[free:], batch_score)

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(N,) of the batch's samples, () of the batch itself."""
        if not self.buffer:
            score = torch.full((len(batch.y),), FIRST_SCORE, device=self.device)
            return score, score[0]
        memory = self.buffer.sample(self.options.gss_minibatch_size)
        normalise = self.benchmark.augment.normalise
        offered = Examples(normalise(batch.x_raw), batch.y, batch.task_id)
        stored = Examples(normalise(memory["x"]), memory["y"], memory["task_id"])
        score = 1 + GradientSimilarity(self).cosines(offered, stored).amax(1).float()
        return score[:-1], score[-1]

    def compete(self, batch: Batch, score: Tensor, batch_score: Tensor) -> None:
        """Replace what the rule gives up: the device alone knows who wins, so losers are written back."""
        held = self.buffer.fields["score"]
        if self.options.gss_rule == "batch":
            slots, holder = selection.gss_by_batch(held, score, batch_score, self.draws)
        else:
            slots, holder = selection.gss_by_sample(held, score, self.draws)
        fields = {"x": batch.x_raw, "y": batch.y, "task_id": batch.task_id, "index": batch.index}
        fields, holders = fields | {"score": score}, {}
        for name, old in self.buffer.at(slots).items():
            new = fields[name][holder.clamp_min(0)]
            wins = (holder >= 0).view(-1, *[1] * (old.dim() - 1))
            holders[name] = torch.where(wins, new, old)
        self.buffer.replace(slots, **holders)
