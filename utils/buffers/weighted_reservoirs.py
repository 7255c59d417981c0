"""Reservoirs that choose which sample to evict: class-balanced, loss-aware, and both.

Acceptance is the plain reservoir's, so the host knows which rows enter. Victims by class are chosen on the
host too, which keeps count of the classes. Victims by loss depend on what only the device knows: each of
the k rows that enter a full memory is given one with a few operations on the memory's scores, and the images
are copied once, all together.
"""

from bisect import insort
from functools import partial

import torch
from torch import Tensor

from engram.utils.buffers import selection
from engram.utils.buffers.memory import State, n_rows
from engram.utils.buffers.reservoir import Assignment, Buffer
from engram.utils.transfer import send


class EvictingBuffer(Buffer):
    """A reservoir whose victim is drawn with probabilities ∝ `weights()`, renewed after each eviction.

    Subclasses name the fields that the weights are made of in `DECIDING`; every `add` must have them.
    """

    DECIDING: tuple[str, ...] = ()

    def weights(self) -> Tensor:
        """(size,) chance of each slot of the full memory to be evicted, up to a factor."""
        raise NotImplementedError

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...)."""
        if not self.size:
            return
        n_free = max(0, self.size - self.n_seen)  # these many rows enter without an eviction
        rows, slots = self._assign_slots(n_rows(fields))
        if n_free:
            self._write(lambda: (rows[:n_free], slots[:n_free]), fields)
        if len(rows) > n_free:
            entering = send(rows[n_free:], self.device)
            chances = send(torch.rand(len(entering), generator=self.generator), self.device)
            victims = self._evict(entering, chances, fields)
            self.storage.write(victims, fields, rows=last_entry(victims, entering))

    def _evict(self, entering: Tensor, chances: Tensor, fields: dict[str, Tensor]) -> Tensor:
        """(k,) slots for the rows, one after the other; the deciding fields are written on the way."""
        victims: list[Tensor] = []
        deciding = [fields[name].detach().index_select(0, entering).split(1) for name in self.DECIDING]
        for chance, *values in zip(chances.double().split(1), *deciding, strict=True):
            victims.append(pick(self.weights(), chance))
            for name, value in zip(self.DECIDING, values, strict=True):
                self.fields[name].index_copy_(0, victims[-1], value)
        return torch.cat(victims)


class BalancedBuffer(Buffer):
    """Class-balanced reservoir: an accepted sample evicts a random one of the most populated class.

    As in the memorization paper's code: acceptance is the reservoir's. Fields must include `y`, labels
    below `n_classes`; the lowest label wins ties.
    """

    def __init__(self, size: int, n_classes: int, generator: torch.Generator, device: torch.device | str):
        super().__init__(size, generator, device)
        self.n_classes = n_classes
        self.members: list[list[int]] = [[] for _ in range(n_classes)]  # each class's slots, in order

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...). Without `y_on_host` the labels are read from the device."""
        if not self.size:
            return
        self._write(partial(self._assign_by_class, fields["y"] if y_on_host is None else y_on_host), fields)

    def _assign_by_class(self, y: Tensor) -> Assignment:
        """Rows of offered samples with labels y (N,) that enter, and the slot of each."""
        n_free = max(0, self.size - self.n_seen)  # these many rows enter without an eviction
        rows, slots = self._assign_slots(len(y))
        labels = y.tolist()
        evictions = range(n_free, len(rows))
        chances = torch.rand(len(evictions), generator=self.generator).tolist() if evictions else []
        for i, row in enumerate(rows):
            if i >= n_free:
                slots[i] = self._evict(chances[i - n_free])
            insort(self.members[labels[row]], slots[i])
        return rows, slots

    def _evict(self, chance: float) -> int:
        """The slot given up by the most populated class: the member at the share `chance`, in [0, 1)."""
        largest = max(self.members, key=len)
        return largest.pop(int(chance * len(largest))) if largest else self.size - 1

    def evictable(self) -> Tensor:
        """(len(self),) whether each stored sample may be evicted."""
        return torch.ones(len(self), dtype=torch.bool, device=self.device)

    def _list_members(self) -> None:
        """Make the lists of members from what is stored; reads the device."""
        self.members = [[] for _ in range(self.n_classes)]
        if len(self) and self.fields:
            labels, evictable = self.stored()["y"].tolist(), self.evictable().tolist()
            for slot, label in enumerate(labels):
                if evictable[slot]:
                    self.members[label].append(slot)

    def replace(self, slots: Tensor, **fields: Tensor) -> None:
        """Overwrite fields of chosen slots (k,), all different; labels and marks among them are read."""
        super().replace(slots, **fields)
        if fields.keys() & {"y", "protected"}:
            self._list_members()

    def fill(self, **fields: Tensor) -> None:
        """Hold exactly these samples, at most `size`, in their order, and count them as seen."""
        super().fill(**fields)
        self._list_members()

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self._list_members()


class ProtectedBuffer(BalancedBuffer):
    """Class-balanced reservoir that never evicts samples whose field `protected` is set.

    Classes are counted without them. Newcomers are not protected; `replace` sets the field.
    """

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...), `protected` not among them."""
        unprotected = torch.zeros(n_rows(fields), dtype=torch.bool, device=self.device)
        super().add(y_on_host=y_on_host, **fields, protected=unprotected)

    def evictable(self) -> Tensor:
        """(len(self),) the samples that are not protected."""
        return ~self.stored()["protected"]


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


class LossAwareBalancedBuffer(EvictingBuffer):
    """Loss-Aware Balanced Reservoir Sampling (LABRS): members of large classes and well learned ones.

    Source: as `LossAwareBuffer`. Fields must include `y` and `score`.
    """

    DECIDING = ("y", "score")

    def __init__(self, size: int, n_classes: int, generator: torch.Generator, device: torch.device | str):
        super().__init__(size, generator, device)
        self.n_classes = n_classes

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
