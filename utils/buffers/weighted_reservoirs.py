"""Reservoirs that choose which sample to evict: class-balanced, loss-aware, and both.

Acceptance is the plain reservoir's, so the host knows which rows enter. The victim depends on what is
stored, which only the device knows; each of the k rows that enter a full memory is given one with a few
operations on the memory's labels and scores, and the images are copied once, all together.
"""

import torch
from torch import Tensor

from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import Buffer
from engram.utils.transfer import send


class EvictingBuffer(Buffer):
    """A reservoir whose victim is drawn with probabilities ∝ `weights()`, renewed after each eviction.

    Subclasses name the fields that the weights are made of in `DECIDING`; every `add` must have them.
    """

    DECIDING: tuple[str, ...] = ()

    def weights(self) -> Tensor:
        """(size,) chance of each slot of the full memory to be evicted, up to a factor."""
        raise NotImplementedError

    def add(self, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...)."""
        if not self.size:
            return
        free = max(0, self.size - self.n_seen)  # these many rows enter without an eviction
        rows, slots = self._assign_slots(len(fields["y"]))
        self._write(rows[:free], slots[:free], fields)
        if len(rows) > free:
            entering = send(rows[free:], self.device)
            chances = send(torch.rand(len(entering), generator=self.generator), self.device)
            victims = self._evict(entering, chances, fields)
            self._copy(last_entry(victims, entering), victims, fields)

    def _evict(self, entering: Tensor, chances: Tensor, fields: dict[str, Tensor]) -> Tensor:
        """(k,) slots for the rows, one after the other; the deciding fields are written on the way."""
        victims = []
        for row, chance in zip(entering.split(1), chances.split(1), strict=True):
            victims.append(pick(self.weights(), chance))
            for name in self.DECIDING:
                self.fields[name].index_copy_(0, victims[-1], fields[name].detach()[row])
        return torch.cat(victims)


class BalancedBuffer(EvictingBuffer):
    """Class-balanced reservoir: an accepted sample evicts a random one of the most populated class.

    As in the memorization paper's code: acceptance is the reservoir's. Fields must include `y`, labels
    below `n_classes`; the lowest label wins ties.
    """

    DECIDING: tuple[str, ...] = ("y",)

    def __init__(self, size: int, n_classes: int, generator: torch.Generator, device: torch.device | str):
        super().__init__(size, generator, device)
        self.n_classes = n_classes

    def weights(self) -> Tensor:
        """One for members of the most populated class, zero for the others."""
        y = self.fields["y"]
        return y == selection.class_counts(y, self.n_classes).argmax()


class ProtectedBuffer(BalancedBuffer):
    """Class-balanced reservoir that never evicts samples whose field `protected` is set.

    Classes are counted without them. Every `add` must have the field.
    """

    DECIDING = ("y", "protected")

    def weights(self) -> Tensor:
        """One for unprotected members of the class that has most of them, zero for the others."""
        y, free = self.fields["y"], ~self.fields["protected"]
        counts = torch.zeros(self.n_classes, dtype=torch.long, device=self.device).index_add_(
            0, y, free.long()
        )
        return free & (y == counts.argmax())


class LossAwareBuffer(EvictingBuffer):
    """Loss-Aware Reservoir Sampling (LARS): what the network has learned well is evicted first.

    Source: Buzzega et al. 2021, "Rethinking Experience Replay: a Bag of Tricks for Continual Learning"
    (arXiv 2010.05595), section IV. Fields must include `score`, a sample's last known loss, which the
    method keeps up to date with `replace(slots, score=...)`.
    """

    DECIDING = ("score",)

    def weights(self) -> Tensor:
        """The largest loss in the memory minus the sample's own."""
        return selection.loss_aware(self.fields["score"])


class LossAwareBalancedBuffer(BalancedBuffer):
    """Loss-Aware Balanced Reservoir Sampling (LABRS): members of large classes and well learned ones.

    Source: as `LossAwareBuffer`. Fields must include `y` and `score`.
    """

    DECIDING = ("y", "score")

    def weights(self) -> Tensor:
        """Size of the sample's class minus its loss, both on the same scale."""
        return selection.loss_aware_balanced(self.fields["score"], self.fields["y"], self.n_classes)


def pick(weights: Tensor, chance: Tensor) -> Tensor:
    """(1,) the first position where the cumulated weights (N,) exceed the share `chance` (1,) of their sum.

    `chance` lies in [0, 1): if it is uniform, a position has a probability proportional to its weight.
    """
    total = weights.cumsum(0, dtype=torch.float64)
    return torch.searchsorted(total, chance.double() * total[-1], right=True).clamp_max(len(weights) - 1)


def last_entry(slots: Tensor, rows: Tensor) -> Tensor:
    """(k,) for each of k slots the last of the rows (k,) bound for it, without reading the device."""
    same = slots.view(-1, 1) == slots.view(1, -1)
    last = (same * torch.arange(1, len(rows) + 1, device=rows.device)).argmax(1)
    return rows[last]
