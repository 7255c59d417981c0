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

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models.method import Method
from engram.models.parts.replay import ReplayOptions, draw, store
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import option

BASE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of ER-AML."""

    supcon_temperature: float = option(0.2, "temperature τ (the official sweeps': 0.2)", gt=0)


class ERAML(Method):
    """Contrast on the stream, cross-entropy on the replay."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)
        self.draws = setup.generator("method")

    def loss(self, batch):
        """The sum of both losses."""
        replayed = draw(self)
        if replayed is None:
            return super().loss(batch)
        x, y, task_id = replayed
        return self.contrast(batch) + F.cross_entropy(self.logits(x, task_id), y)

    def contrast(self, batch) -> Tensor:
        """SupCon of the stream's samples with what is drawn for them."""
        held = self.buffer.stored()
        places, valid = self.pairs(torch.cat((held["y"], batch.y)), len(batch.y))
        raw = pooled(held["x"], batch.x_raw, places)
        f = F.normalize(self.net.features(self.augment(raw)), dim=1)
        h = F.normalize(self.net.features(batch.x), dim=1)
        y = pooled(held["y"], batch.y, places)
        return supcon(h, f, batch.y, y, valid, self.options.supcon_temperature)

    def pairs(self, pool: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(2n,) places of n positives and n negatives in a pool of labels (N + n,) that ends with the batch.

        Also (n,) whether a sample has both; otherwise its places mean nothing.
        """
        y = pool[-n:]
        same = pool.view(-1, 1) == y
        place = torch.arange(len(pool), device=pool.device)
        positive = same & (place.view(-1, 1) != place[-n:])
        negative = ~same & same.any(1, keepdim=True)  # of a label that the batch has
        masks = torch.cat((positive, negative), 1)
        count = masks.cumsum(0)
        chance = torch.rand(2 * n, generator=self.draws).to(pool.device)
        places = (count > (chance * count[-1]).floor()).to(torch.uint8).argmax(0)
        return places, (count[-1] > 0).view(2, n).all(0)

    def after_step(self, batch):
        """Reservoir update."""
        store(self, batch)


def pooled(held: Tensor, batch: Tensor, places: Tensor) -> Tensor:
    """Rows of the memory's field followed by the batch's, without joining them."""
    n = len(held)
    old = held.index_select(0, places.clamp_max(n - 1))
    own = batch.index_select(0, (places - n).clamp_min(0))
    return torch.where((places < n).view(-1, *[1] * (old.dim() - 1)), old, own)


def supcon(h: Tensor, f: Tensor, y: Tensor, y_f: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Scalar supervised contrastive loss of anchors h (n, D) and their pairs f (2n, D).

    y (n,), y_f (2n,): labels. valid (n,): anchors, and their pairs, that count.
    """
    counted = valid.repeat(2)
    logits = (h @ f.T / temperature).masked_fill(~counted, -1e9)
    positive = (y.view(-1, 1) == y_f) & counted
    mean = (positive * logits.log_softmax(1)).sum(1) / positive.sum(1).clamp_min(1)
    return -temperature / BASE_TEMPERATURE * (valid * mean).sum() / valid.sum().clamp_min(1)
