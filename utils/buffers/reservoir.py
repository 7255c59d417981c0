"""Replay buffers: preallocated tensors on the training device, vectorised insertion and drawing.

All random decisions are drawn on the host from the buffer's own generator: the same seed fills the
same buffer on every device, and no step waits for the device. Here: a uniform reservoir, first in first
out, and unlimited; `weighted_reservoirs.py` has those that choose which sample to evict, `ring.py` those
with a ring of slots for every task or class, `exemplar_memory.py` the one that is renewed after a task.
"""

import torch
from torch import Tensor

from engram.utils.buffers.memory import State, n_rows
from engram.utils.transfer import send


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
        self.n_extra_slots = 0 if rule == "uniform" else 1  # the k-th sample draws one of k + n_extra_slots
        self.n_seen = 0
        self.fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.n_seen, self.size)

    # --- storing ---------------------------------------------------------------------------------

    def add(self, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...)."""
        if not self.size:
            return
        rows, slots = self._assign_slots(n_rows(fields))
        last = dict(zip(slots, rows, strict=True))  # of several bound for one slot the last stays
        self._write(list(last.values()), list(last), fields)

    def _assign_slots(self, n: int) -> tuple[list[int], list[int]]:
        """Rows of `n` offered samples that enter, and the slot of each, as if they came one by one.

        In plain Python: for the few numbers of a batch that is several times faster than array operations.
        """
        draws = torch.rand(n, generator=self.generator, dtype=torch.float64).tolist()
        n_free, n_slots = self.size - self.n_seen, self.n_seen + 1 + self.n_extra_slots
        slots = [self.n_seen + i if i < n_free else int(u * (n_slots + i)) for i, u in enumerate(draws)]
        self.n_seen += n
        rows = [i for i, slot in enumerate(slots) if slot < self.size]
        return rows, [slots[i] for i in rows]

    def _write(self, rows: list[int], slots: list[int], fields: dict[str, Tensor]) -> None:
        """Copy rows of the fields into slots of the buffer; a full reservoir often takes none."""
        if rows:
            chosen = send([rows, slots], self.device)
            self._copy(chosen[0], chosen[1], fields)

    def _copy(self, rows: Tensor, slots: Tensor, fields: dict[str, Tensor]) -> None:
        """Copy rows (k,) of the fields into slots (k,), both index tensors on the device."""
        for name, values in fields.items():
            if name not in self.fields:
                shape = (self.size, *values.shape[1:])
                self.fields[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
            copy_rows(self.fields[name], slots, values.detach().index_select(0, rows))

    def replace(self, slots: Tensor, **fields: Tensor) -> None:
        """Overwrite fields of chosen slots (k,), all different, with those of k samples."""
        for name, values in fields.items():
            copy_rows(self.fields[name], slots.to(self.device), values.to(self.fields[name]))

    def fill(self, **fields: Tensor) -> None:
        """Hold exactly these samples, at most `size`, in their order, and count them as seen."""
        n = n_rows(fields)
        assert n <= self.size, f"{n} samples for {self.size} slots"
        self.n_seen = n
        slots = torch.arange(n, device=self.device)
        self._copy(slots, slots, fields)

    # --- drawing ---------------------------------------------------------------------------------

    def slots(self, n: int) -> Tensor:
        """(min(n, len(self)),) distinct slots in use, uniformly."""
        return send(distinct(len(self), min(n, len(self)), self.generator), self.device)

    def slots_of_task(self, task: int, n: int) -> Tensor:
        """(n,) slots of one task, distinct while there are enough of them; it must have one."""
        return rows_where(self.stored()["task_id"] == task, n, self.generator)

    def at(self, slots: Tensor) -> dict[str, Tensor]:
        """The samples in some slots; each field (n, ...)."""
        return {name: values.index_select(0, slots) for name, values in self.fields.items()}

    def sample(self, n: int) -> dict[str, Tensor]:
        """`min(n, len(self))` distinct samples, uniformly; each field (n, ...)."""
        return self.at(self.slots(n))

    def sample_by_task(self, task: int, n: int) -> dict[str, Tensor]:
        """`n` samples of one task, distinct while there are enough of them; it must have one."""
        return self.at(self.slots_of_task(task, n))

    def sample_with_replacement(self, n: int) -> dict[str, Tensor]:
        """`n` independent uniform draws, so possibly repeated; each field (n, ...). Not when empty."""
        return self.at(send(torch.randint(len(self), (n,), generator=self.generator), self.device))

    def stored(self) -> dict[str, Tensor]:
        """Views of everything in the buffer, in slot order."""
        return {name: values[: len(self)] for name, values in self.fields.items()}

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Contents, counters and the state of the generator."""
        state = {"n_seen": self.n_seen, "generator": self.generator.get_state()}
        return state | {"fields": dict(self.fields)}

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        self.n_seen = state["n_seen"]
        self.generator.set_state(state["generator"].cpu())
        self.fields = {name: values.to(self.device) for name, values in state["fields"].items()}


class FIFOBuffer(Buffer):
    """The last `size` samples offered; the oldest leaves first."""

    def _assign_slots(self, n: int) -> tuple[list[int], list[int]]:
        n_stored = min(n, self.size)
        self.n_seen += n
        slots = [k % self.size for k in range(self.n_seen - n_stored, self.n_seen)]
        return list(range(n - n_stored, n)), slots


class UnlimitedBuffer(Buffer):
    """Stores every sample. The slots double when all are in use, so a sample moves twice on average."""

    def __init__(self, generator: torch.Generator, device: torch.device | str):
        super().__init__(0, generator, device)

    def add(self, **fields: Tensor) -> None:
        """Append a batch; each field is (N, ...)."""
        start, n = self.n_seen, n_rows(fields)
        if start + n > self.size:
            self.size = max(2 * self.size, start + n)
            for name, old in self.fields.items():
                self.fields[name] = torch.cat((old, old.new_zeros(self.size - len(old), *old.shape[1:])))
        self.n_seen += n
        rows = torch.arange(n, device=self.device)
        self._copy(rows, start + rows, fields)

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self.size = max((len(values) for values in self.fields.values()), default=0)


def copy_rows(target: Tensor, slots: Tensor, rows: Tensor) -> None:
    """target[slots] = rows, along the first dimension; both contiguous."""
    size = rows.element_size()
    if rows.device.type == "cpu" and size < 8 and rows.dim() > 1 and rows.shape[1:].numel() * size % 16 == 0:
        # a CPU copies the same bytes many times faster as a few wide numbers
        target, rows = (t.flatten(1).view(torch.complex128) for t in (target, rows))
    target.index_copy_(0, slots, rows)


def distinct(population: int, n: int, generator: torch.Generator) -> Tensor:
    """`n` distinct integers below `population`, uniformly.

    For small n whole draws are repeated until all differ, which is uniform and far cheaper than a
    permutation of the population.
    """
    if n * n > population or not population:
        return torch.randperm(population, generator=generator)[:n]
    while True:
        rows = torch.randint(population, (n,), generator=generator)
        if len(set(rows.tolist())) == n:
            return rows


def rows_where(mask: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n,) positions where mask (N,) is True, drawn uniformly; all distinct until every one has been used.

    Random keys rank the positions, so that nothing is read from the device, not even whether the mask is True
    anywhere. If it is True nowhere, the result is one arbitrary position n times: a valid index, no choice.
    """
    keys = send(torch.rand(len(mask), generator=generator), mask.device)
    n_ranked = min(n, len(mask))
    ranked = keys.masked_fill(~mask, 2.0).topk(n_ranked, largest=False).indices
    turn = torch.arange(n, device=mask.device) % mask.sum().clamp_min(1)
    return ranked[turn]
