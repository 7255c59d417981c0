"""ER with Asymmetric Metric Learning (ER-AML): contrast on the stream, cross-entropy on the replay.

Source: Caccia et al. 2022, "New Insights on Reducing Abrupt Representation Change in Online Continual
Learning" (arXiv 2104.05025), the SupCon variant; official code `er_aml`. For each sample of the stream one
positive (same label, another sample) and one negative (another label among those of the batch) are drawn
from the memory and the batch together. With h and f the features, scaled to length one,
    L = −(τ / 0.07) · mean_i mean_{p: y_p = y_i} log softmax_j(h_i · f_j / τ)_p + CE(replay),
j over all positives and negatives drawn. Samples without a positive or a negative do not count. The
memory, a reservoir, holds raw images. No task is needed: the official code's task-free form.
Differs from the official code: all images are augmented as the stream's (there those of the contrast are
not); with several epochs a sample is offered to the memory once.
"""

from collections.abc import Hashable
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

BASE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of ER-AML."""

    supcon_temperature: float = option(0.2, "temperature τ (the official sweeps': 0.2)", gt=0)


class ERAML(RehearsalMethod):
    """Contrast on the stream, cross-entropy on the replay."""

    options: Options
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def loss(self, batch: Batch) -> Tensor:
        """SupCon(stream, with pairs of the memory) + CE(replay)."""
        replayed = self.replay()
        if replayed is None:
            return F.cross_entropy(self.logits(batch.x, batch.task_id), batch.y)
        return (
            self.contrast(batch)
            + F.cross_entropy(self.logits(replayed.x, replayed.task_id), replayed.y)
        )  # fmt: skip

    def contrast(self, batch: Batch) -> Tensor:
        """SupCon of the stream's samples with what is drawn for them."""
        stored = self.buffer.stored()
        rows, valid = self.pairs(torch.cat((stored["y"], batch.y)), len(batch.y))
        raw = pooled(stored["x"], batch.x_raw, rows)
        f = F.normalize(self.net.features(self.augment(raw)), dim=1)
        h = F.normalize(self.net.features(batch.x), dim=1)
        y = pooled(stored["y"], batch.y, rows)
        return supcon(h, f, batch.y, y, valid, self.options.supcon_temperature)

    def pairs(self, pool: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(2n,) rows of n positives and n negatives in a pool of labels (N + n,) that ends with the batch.

        Also (n,) whether a sample has both; otherwise its rows mean nothing.
        """
        y = pool[-n:]
        same = pool.view(-1, 1) == y
        row = torch.arange(len(pool), device=pool.device)
        positive = same & (row.view(-1, 1) != row[-n:])
        negative = ~same & same.any(1, keepdim=True)  # of a label that the batch has
        masks = torch.cat((positive, negative), 1)
        count = masks.cumsum(0)
        chance = decide(lambda: torch.rand(2 * n, generator=self.draws), pool.device)
        rows = (count > (chance * count[-1]).floor()).to(torch.uint8).argmax(0)
        return rows, (count[-1] > 0).view(2, n).all(0)

    def step_form(self) -> Hashable:
        """Whether samples are stored, and how many there are to make pairs with."""
        return self.epoch == 0, len(self.buffer)

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the reservoir."""
        self.remember(batch)


def pooled(stored: Tensor, batch: Tensor, rows: Tensor) -> Tensor:
    """Rows of the memory's field followed by the batch's, without joining them."""
    n = len(stored)
    old = stored.index_select(0, rows.clamp_max(n - 1))
    new = batch.index_select(0, (rows - n).clamp_min(0))
    return torch.where((rows < n).view(-1, *[1] * (old.dim() - 1)), old, new)


def supcon(h: Tensor, f: Tensor, y: Tensor, y_f: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Scalar supervised contrastive loss of anchors h (n, D) and their pairs f (2n, D).

    y (n,), y_f (2n,): labels. valid (n,): anchors, and their pairs, that count.
    """
    counted = valid.repeat(2)
    logits = (h @ f.T / temperature).masked_fill(~counted, -1e9)
    positive = (y.view(-1, 1) == y_f) & counted
    mean = (positive * logits.log_softmax(1)).sum(1) / positive.sum(1).clamp_min(1)
    return -temperature / BASE_TEMPERATURE * (valid * mean).sum() / valid.sum().clamp_min(1)
