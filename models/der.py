"""Dark Experience Replay (DER): replayed samples keep the logits that the network once gave them.

Source: Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline"
(arXiv 2004.07211), Algorithm 1: L = CE(stream) + α · MSE(h(x'), z), x' a new view of a stored
image. The memory, a reservoir, holds raw images and z: the outputs of all classes, before the softmax,
that the network gave to the sample's augmented view in train mode when it was met, before the step. As in
the official code the MSE is the mean over samples and classes, and stream and replay are passes of their own
(one, where there is no batch norm to tell them apart).
Differs from the paper: with several epochs a sample is offered to the memory once (there in every epoch,
so that copies of an image fill slots); its z is that of a uniformly random epoch, as the paper's
reservoir over the whole optimisation would have it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.config.options import option
from engram.utils.transfer import decide


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of DER."""

    alpha: float = option(0.3, "weight α of the distance to the stored logits", ge=0)


class DER(RehearsalMethod):
    """Cross-entropy on the stream, and the old outputs on what is replayed."""

    options: Options
    data_parallel = True
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.coins = setup.generator("method")
        self.outputs: Tensor | None = None  # of the current batch

    def loss(self, batch: Batch) -> Tensor:
        """CE(stream) + α MSE(h(x'), z), x' and z drawn from the memory."""
        if not self.buffer:
            return self.stream_loss(batch, *self.separate_passes(batch))
        sample = self.buffer.sample(self.n_replayed)
        outputs, replayed_outputs = self.separate_passes(batch, self.augmented(sample))
        return (
            self.stream_loss(batch, outputs)
            + self.options.alpha * self.logit_distance(replayed_outputs, sample["logits"], sample["task_id"])
        )  # fmt: skip

    def stream_loss(self, batch: Batch, outputs: Tensor) -> Tensor:
        """CE of the stream's batch; keeps its outputs (N, C) for `after_step`, which stores them."""
        self.outputs = outputs.detach().float()
        return F.cross_entropy(self.mask_classes(outputs, batch.task_id), batch.y)

    def after_step(self, batch: Batch) -> None:
        """Offer the batch and its outputs; after the first epoch renew outputs of stored samples."""
        self.remember(batch, logits=self.outputs)
        if self.epoch and self.buffer:
            self.renew_outputs(batch)

    @torch.no_grad()
    def renew_outputs(self, batch: Batch) -> None:
        """In epoch e (from 0) a sample takes its new outputs with probability 1 / (e + 1)."""
        stored = self.buffer.stored()
        same = stored["index"].view(-1, 1) == batch.index
        same &= stored["task_id"].view(-1, 1) == batch.task_id
        same &= decide(
            lambda: torch.rand(len(batch.y), generator=self.coins) * (self.epoch + 1) < 1, self.device
        )
        new = self.outputs[same.to(torch.uint8).argmax(1)]
        stored["logits"].copy_(torch.where(same.any(1, keepdim=True), new, stored["logits"]))
