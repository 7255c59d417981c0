"""Replay buffer: preallocated tensors on the training device, vectorised insertion and drawing.

All random decisions are drawn on the host from the buffer's own generator: the same seed fills the
same buffer on every device, and no step waits for the device.
"""

import torch
from torch import Tensor


class Buffer:
    """At most `size` samples, kept as a uniform sample of everything offered (reservoir sampling).

    Fields are declared by the first `add`: any tensors with a common first dimension. Vitter's
    algorithm R (1985): the k-th sample offered (k = 1, 2, ...) is kept with probability size / k. The
    rule "original" is that of the MER paper's code: size / (k + 1) once the buffer is full, so that
    early samples stay a little longer.
    """

    RULES = ("uniform", "original")

    def __init__(
        self, size: int, generator: torch.Generator, device: torch.device | str, rule: str = "uniform"
    ):
        assert rule in self.RULES, rule
        self.size, self.generator, self.device = size, generator, torch.device(device)
        self.n_places = 1 if rule == "uniform" else 2  # the k-th sample draws one of k − 1 + n_places
        self.n_seen = 0
        self.fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.n_seen, self.size)

    def add(self, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...)."""
        if not self.size:
            return
        n = len(next(iter(fields.values())))
        rows, slots = self._place(n)
        self._write(rows, slots, fields)

    def _place(self, n: int) -> tuple[Tensor, Tensor]:
        """Which of `n` offered samples go to which slots, as if they came one by one."""
        position = torch.arange(self.n_seen, self.n_seen + n)
        draws = torch.rand(n, generator=self.generator, dtype=torch.float64)
        slots = torch.where(position < self.size, position, (draws * (position + self.n_places)).long())
        self.n_seen += n
        rows = torch.nonzero(slots < self.size).view(-1)
        return rows, slots[rows]

    def _write(self, rows: Tensor, slots: Tensor, fields: dict[str, Tensor]) -> None:
        rows, slots = last_writer(rows, slots)
        rows, slots = rows.to(self.device), slots.to(self.device)
        for name, values in fields.items():
            if name not in self.fields:
                shape = (self.size, *values.shape[1:])
                self.fields[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
            self.fields[name][slots] = values.detach()[rows]

    def sample(self, n: int) -> dict[str, Tensor]:
        """`min(n, len(self))` distinct samples, uniformly; each field (n, ...)."""
        rows = distinct(len(self), min(n, len(self)), self.generator).to(self.device)
        return {name: values.index_select(0, rows) for name, values in self.fields.items()}

    def sample_with_replacement(self, n: int) -> dict[str, Tensor]:
        """`n` independent uniform draws, so possibly repeated; each field (n, ...). Not when empty."""
        rows = torch.randint(len(self), (n,), generator=self.generator).to(self.device)
        return {name: values.index_select(0, rows) for name, values in self.fields.items()}

    def stored(self) -> dict[str, Tensor]:
        """Views of everything in the buffer, in slot order."""
        return {name: values[: len(self)] for name, values in self.fields.items()}

    def replace(self, slots: Tensor, **fields: Tensor) -> None:
        """Overwrite chosen slots (k,) with k samples."""
        for name, values in fields.items():
            self.fields[name][slots.to(self.device)] = values

    def state_dict(self) -> dict:
        """Contents, counters and the generator."""
        state = {"n_seen": self.n_seen, "generator": self.generator.get_state()}
        return state | {"fields": dict(self.fields)}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where `state` was taken."""
        self.n_seen = state["n_seen"]
        self.generator.set_state(state["generator"].cpu())
        self.fields = {name: values.to(self.device) for name, values in state["fields"].items()}


class BalancedBuffer(Buffer):
    """Class-balanced reservoir: an accepted sample evicts a random one of the most populated class.

    As in the memorization paper's code: acceptance is the reservoir's. Fields must include `y`, labels
    below `n_classes`. Classes are counted on the device; the host knows which rows are accepted, so
    nothing is read back.
    """

    def __init__(self, size: int, n_classes: int, generator: torch.Generator, device: torch.device | str):
        super().__init__(size, generator, device)
        self.n_classes = n_classes

    def add(self, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...)."""
        if not self.size:
            return
        free = max(0, self.size - self.n_seen)
        n = len(fields["y"])
        rows, slots = self._place(n)
        fresh = rows < free
        self._write(rows[fresh], slots[fresh], fields)
        chances = torch.rand(int((~fresh).sum()), generator=self.generator)
        for row, chance in zip(rows[~fresh].tolist(), chances.tolist(), strict=True):
            slot = self._crowded_slot(chance)
            for name, values in fields.items():
                self.fields[name].index_copy_(0, slot, values[row : row + 1].detach())

    def _crowded_slot(self, chance: float) -> Tensor:
        """(1,) a slot of the most populated class, uniform in `chance`; the lowest label wins ties."""
        y = self.fields["y"]
        counts = torch.zeros(self.n_classes, dtype=torch.long, device=self.device)
        members = y == counts.index_add_(0, y, torch.ones_like(y)).argmax()
        rank = (members.sum() * chance).long()
        return (members.cumsum(0) > rank).to(torch.uint8).argmax().view(1)


def last_writer(rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Drop all but the last of several rows bound for one slot: what one-by-one insertion leaves."""
    if len(slots) < 2:
        return rows, slots
    later = torch.triu(slots.view(-1, 1) == slots.view(1, -1), diagonal=1).any(1)
    return rows[~later], slots[~later]


def distinct(population: int, n: int, generator: torch.Generator) -> Tensor:
    """`n` distinct integers below `population`, uniformly.

    For small n whole draws are repeated until all differ, which is uniform and far cheaper than a
    permutation of the population.
    """
    if n * n > population:
        return torch.randperm(population, generator=generator)[:n]
    while True:
        rows = torch.randint(population, (n,), generator=generator)
        if len(torch.unique(rows)) == n:
            return rows
