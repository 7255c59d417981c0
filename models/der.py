"""Dark Experience Replay (DER): replayed samples keep the logits that the network once gave them.

Source: Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline"
(arXiv 2004.07211), Algorithm 1: L = CE(stream) + α · MSE(h(x'), z), x' a new view of a stored
image. The memory, a reservoir, holds raw images and z: the outputs of all classes, before the softmax,
that the network gave to the sample's augmented view in train mode when it was met, before the step. As in
the official code the MSE is the mean over samples and classes, and stream and replay are passes of their own
(one, where there is no batch norm to tell them apart).
Differs from the paper: with several epochs a sample is offered to the memory once (there in every epoch,
so that copies of an image fill places); its z is that of a uniformly random epoch, as the paper's
reservoir over the whole optimisation would have it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models.method import Method
from engram.models.parts.replay import Replayed, ReplayOptions, augmented, passes, replayed_per_step, store
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of DER."""

    alpha: float = option(0.3, "weight α of the distance to the stored logits", ge=0)


class DER(Method):
    """Cross-entropy on the stream, and the old outputs on what is replayed."""

    rehearses = True
    data_parallel = True
    n_draws = 1  # from the memory per step, independent of each other

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)
        self.coins = setup.generator("method")
        self.outputs: Tensor | None = None  # of the current batch

    def loss(self, batch):
        """CE + α MSE."""
        n = replayed_per_step(self)
        drawn = [self.buffer.sample(n) for _ in range(self.n_draws)] if self.buffer else []
        replayed = [augmented(self, sample) for sample in drawn]
        outputs, *again = passes(self, batch, *replayed)
        self.outputs = outputs.detach().float()
        loss = F.cross_entropy(self.own_logits(outputs, batch.task_id), batch.y)
        if not drawn:
            return loss
        return (
            loss + self.options.alpha * F.mse_loss(again[0], drawn[0]["logits"]) + self.more(again, replayed)
        )

    def more(self, again: list[Tensor], replayed: list[Replayed]) -> Tensor | float:
        """What DER++ adds, of outputs for the samples replayed; the first draw is DER's."""
        return 0.0

    def after_step(self, batch):
        """Offer the batch and its outputs; after the first epoch renew outputs of samples held."""
        store(self, batch, logits=self.outputs)
        if self.epoch and self.buffer:
            self.renew(batch)

    @torch.no_grad()
    def renew(self, batch):
        """In epoch e (from 0) a sample takes its new outputs with probability 1 / (e + 1)."""
        held = self.buffer.stored()
        same = held["index"].view(-1, 1) == batch.index
        same &= held["task_id"].view(-1, 1) == batch.task_id
        heads = torch.rand(len(batch.y), generator=self.coins) * (self.epoch + 1) < 1
        same &= heads.to(self.device)
        new = self.outputs[same.to(torch.uint8).argmax(1)]
        held["logits"].copy_(torch.where(same.any(1, keepdim=True), new, held["logits"]))
