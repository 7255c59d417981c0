"""Replay buffers: preallocated tensors on the training device, vectorised insertion and drawing.

All random decisions are drawn on the host from the buffer's own generator: the same seed fills the
same buffer on every device, and no step waits for the device. Here: a uniform reservoir, first in first
out, and unlimited; `weighted_reservoirs.py` has those that choose which sample to evict, `ring.py` those
with a ring of slots for every task or class, `exemplar_memory.py` the one that is renewed after a task.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from engram.utils.buffers.memory import State, n_rows
from engram.utils.buffers.storage import Storage, copy_rows
from engram.utils.transfer import decide

Assignment = tuple[list[int], list[int]]  # rows of a batch that are stored, and the slot of each


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
        self.storage = Storage(size, self.device)
        self.fields = self.storage.fields

    def __len__(self) -> int:
        return min(self.n_seen, self.size)

    # --- storing ---------------------------------------------------------------------------------

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...). A reservoir does not look at labels."""
        if not self.size:
            return
        self._write(partial(self._assign_slots, n_rows(fields)), fields)

    def _assign_slots(self, n: int) -> Assignment:
        """Rows of `n` offered samples that enter, and the slot of each, as if they came one by one.

        In plain Python: for the few numbers of a batch that is several times faster than array operations.
        """
        draws = torch.rand(n, generator=self.generator, dtype=torch.float64).tolist()
        n_free, n_slots = self.size - self.n_seen, self.n_seen + 1 + self.n_extra_slots
        slots = [self.n_seen + i if i < n_free else int(u * (n_slots + i)) for i, u in enumerate(draws)]
        self.n_seen += n
        rows = [i for i, slot in enumerate(slots) if slot < self.size]
        return rows, [slots[i] for i in rows]

    def _write(self, assign: Callable[[], Assignment], fields: dict[str, Tensor]) -> None:
        """Copy rows of the fields into slots, as `assign` says; of several bound for one the last stays.

        On CUDA all rows are written, those that do not enter to the spare slot: that takes one kernel a
        field, and every step has operations of the same shapes. A CPU copies what enters, often nothing.
        """
        if self.device.type != "cuda":
            rows, slots = assign()
            if rows:
                row_of = dict(zip(slots, rows, strict=True))
                chosen = torch.tensor([list(row_of.values()), list(row_of)])
                self.storage.write(chosen[1], fields, rows=chosen[0])
            return

        def targets() -> Tensor:
            rows, slots = assign()
            slot_of = {row: slot for slot, row in dict(zip(slots, rows, strict=True)).items()}
            return torch.tensor([slot_of.get(row, self.size) for row in range(n_rows(fields))])

        self.storage.write(decide(targets, self.device), fields)

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
        self.storage.write(slots, fields, rows=slots)

    # --- drawing ---------------------------------------------------------------------------------

    def slots(self, n: int) -> Tensor:
        """(min(n, len(self)),) distinct slots in use, uniformly."""
        return decide(lambda: distinct(len(self), min(n, len(self)), self.generator), self.device)

    def slots_of_task(self, task: int, n: int) -> Tensor:
        """(n,) slots of one task, distinct while there are enough of them; it must have one."""
        return rows_where(self.stored()["task_id"] == task, n, self.generator)

    def at(self, slots: Tensor) -> dict[str, Tensor]:
        """The samples in some slots; each field (n, ...)."""
        return self.storage.read(slots)

    def sample(self, n: int) -> dict[str, Tensor]:
        """`min(n, len(self))` distinct samples, uniformly; each field (n, ...)."""
        return self.at(self.slots(n))

    def sample_by_task(self, task: int, n: int) -> dict[str, Tensor]:
        """`n` samples of one task, distinct while there are enough of them; it must have one."""
        return self.at(self.slots_of_task(task, n))

    def sample_with_replacement(self, n: int) -> dict[str, Tensor]:
        """`n` independent uniform draws, so possibly repeated; each field (n, ...). Not when empty."""
        return self.at(decide(lambda: torch.randint(len(self), (n,), generator=self.generator), self.device))

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
        self.storage.load(state["fields"])


class FIFOBuffer(Buffer):
    """The last `size` samples offered; the oldest leaves first."""

    def _assign_slots(self, n: int) -> Assignment:
        n_stored = min(n, self.size)
        self.n_seen += n
        slots = [k % self.size for k in range(self.n_seen - n_stored, self.n_seen)]
        return list(range(n - n_stored, n)), slots


class UnlimitedBuffer(Buffer):
    """Stores every sample. The slots double when all are in use, so a sample moves twice on average."""

    def __init__(self, generator: torch.Generator, device: torch.device | str):
        super().__init__(0, generator, device)

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Append a batch; each field is (N, ...)."""
        start, n = self.n_seen, n_rows(fields)
        if start + n > self.size:
            self._grow(max(2 * self.size, start + n))
        self.n_seen += n
        self.storage.write(torch.arange(start, start + n, device=self.device), fields)

    def _grow(self, size: int) -> None:
        """Have `size` slots; what is stored moves there."""
        stored, self.size = dict(self.fields), size
        self.storage.size = size
        self.storage.load(stored)

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        self.size = max((len(values) for values in state["fields"].values()), default=0)
        self.storage.size = self.size
        super().load_state_dict(state)


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
    keys = decide(lambda: torch.rand(len(mask), generator=generator), mask.device)
    n_ranked = min(n, len(mask))
    ranked = keys.masked_fill(~mask, 2.0).topk(n_ranked, largest=False).indices
    turn = torch.arange(n, device=mask.device) % mask.sum().clamp_min(1)
    return ranked[turn]
