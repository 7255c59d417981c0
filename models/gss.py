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
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.models.method import Method
from engram.models.parts.inner_steps import weighted_loss
from engram.models.parts.replay import Replayed, ReplayOptions, draw, joined, store
from engram.models.parts.similarity import cosines
from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import option

FIRST_SCORE = 0.1


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of GSS."""

    gss_minibatch_size: int = option(10, "samples n of the memory that a new sample is compared with", ge=1)


class GSS(Method):
    """ER whose memory prefers samples unlike those it holds."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)
        self.draws = setup.generator("method")

    def loss(self, batch):
        """ER's."""
        return weighted_loss(self, Replayed(*joined(batch, draw(self))))

    def after_step(self, batch):
        """Fill the memory; once it is full, let the batch compete for its places."""
        if self.epoch or not self.options.buffer_size:
            return
        score = self.scores(batch)
        free = max(0, self.buffer.size - len(self.buffer))
        if free:
            store(self, Batch(*(field[:free] for field in batch)), score=score[:free])
        if free < len(batch.y):
            self.compete(Batch(*(field[free:] for field in batch)), score[free:])

    def scores(self, batch) -> Tensor:
        """(N,) of the batch's samples."""
        if not self.buffer:
            return torch.full((len(batch.y),), FIRST_SCORE, device=self.device)
        memory = self.buffer.sample(self.options.gss_minibatch_size)
        normalise = self.setup.benchmark.augment.normalise
        own = Replayed(normalise(batch.x_raw), batch.y, batch.task_id)
        held = Replayed(normalise(memory["x"]), memory["y"], memory["task_id"])
        return 1 + cosines(self, own, held).amax(1).float()

    def compete(self, batch, score: Tensor) -> None:
        """Algorithm 2, lines 8 to 14: the device alone knows who wins, so losers are written back."""
        slots, wins = selection.gss_greedy(self.buffer.fields["score"], score, self.draws)
        offered = {"x": batch.x_raw, "y": batch.y, "task_id": batch.task_id, "index": batch.index}
        winners = {}
        for name, old in self.buffer.at(slots).items():
            new = (offered | {"score": score})[name][: len(slots)]
            winners[name] = torch.where(wins.view(-1, *[1] * (old.dim() - 1)), new, old)
        self.buffer.replace(slots, **winners)
