"""Ring memories: every task, or every class, has its own ring of slots and loses its oldest samples first."""

import torch
from torch import Tensor

from engram.utils.buffers.memory import State, n_rows
from engram.utils.buffers.reservoir import distinct, rows_where
from engram.utils.buffers.selection import class_counts
from engram.utils.transfer import send


class RingMemory:
    """`per_task` slots for each of `n_tasks` tasks; whoever adds samples names their task.

    Fields are declared by the first `add`: any tensors with a common first dimension, kept as
    (n_tasks · per_task, ...) on the device. Counters live on the host, so nothing is read back.
    """

    def __init__(self, n_tasks: int, per_task: int, generator: torch.Generator, device: torch.device | str):
        self.per_task, self.size = per_task, n_tasks * per_task
        self.generator, self.device = generator, torch.device(device)
        self.n_seen = [0] * n_tasks
        self.fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return sum(map(self.count, range(len(self.n_seen))))

    def count(self, task: int) -> int:
        """How many samples of a task it holds."""
        return min(self.n_seen[task], self.per_task)

    def tasks(self) -> list[int]:
        """The tasks of which it holds samples, in order."""
        return [task for task in range(len(self.n_seen)) if self.count(task)]

    def add(self, task: int, **fields: Tensor) -> None:
        """Append a batch (N, ...) of one task's samples; of more than `per_task` only the last are stored."""
        if not self.per_task:
            return
        n = n_rows(fields)
        n_stored = min(n, self.per_task)
        turn = torch.arange(self.n_seen[task] + n - n_stored, self.n_seen[task] + n, device=self.device)
        slots = task * self.per_task + turn % self.per_task
        for name, values in fields.items():
            if name not in self.fields:
                shape = (self.size, *values.shape[1:])
                self.fields[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
            self.fields[name][slots] = values.detach()[n - n_stored :]
        self.n_seen[task] += n

    def sample(self, n: int, tasks: list[int] | None = None) -> dict[str, Tensor]:
        """At most `n` distinct samples of some tasks (default: all), uniformly; each field (n, ...)."""
        tasks = self.tasks() if tasks is None else tasks
        slots = torch.cat([torch.arange(self.count(task)) + task * self.per_task for task in tasks])
        slots = send(slots[distinct(len(slots), min(n, len(slots)), self.generator)], self.device)
        return {name: values.index_select(0, slots) for name, values in self.fields.items()}

    def sample_by_task(self, task: int, n: int) -> dict[str, Tensor]:
        """At most `n` distinct samples of one task, uniformly."""
        return self.sample(n, [task])

    def of(self, task: int) -> dict[str, Tensor]:
        """Views of the stored samples of a task, each field (count, ...)."""
        start = task * self.per_task
        return {name: values[start : start + self.count(task)] for name, values in self.fields.items()}

    def stored(self) -> dict[str, Tensor]:
        """All samples it holds, task after task."""
        rings = [self.of(task) for task in self.tasks()]
        return {name: torch.cat([ring[name] for ring in rings]) for name in (self.fields if rings else ())}

    def state_dict(self) -> State:
        """Contents, counters and the state of the generator."""
        state = {"n_seen": list(self.n_seen), "generator": self.generator.get_state()}
        return state | {"fields": dict(self.fields)}

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        self.n_seen = list(state["n_seen"])
        self.generator.set_state(state["generator"].cpu())
        self.fields = {name: values.to(self.device) for name, values in state["fields"].items()}


class KeyedRing:
    """`per_group` slots for each of `n_groups` groups; the field `key` (y, task_id) is a sample's group.

    How many samples of a group were offered is known on the device only, and is never read inside a step.
    One extra slot, the last, takes the samples that would be overwritten within their own batch.
    """

    def __init__(
        self, key: str, n_groups: int, per_group: int, generator: torch.Generator, device: torch.device | str
    ):
        self.key, self.per_group, self.size = key, per_group, n_groups * per_group
        self.generator, self.device = generator, torch.device(device)
        self.n_seen = torch.zeros(n_groups, dtype=torch.long, device=self.device)
        self.n_offered = 0
        self.fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """How many samples it holds; reads the device."""
        return int(self.occupied().sum())

    def __bool__(self) -> bool:
        """Whether it holds any sample, without reading the device."""
        return self.n_offered > 0 and self.size > 0

    def occupied(self) -> Tensor:
        """(size,) whether each slot is in use."""
        slot = torch.arange(self.per_group, device=self.device)
        return (slot < self.n_seen.view(-1, 1)).flatten()

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Append a batch; each field is (N, ...). Slots are assigned on the device."""
        if not self.size:
            return
        slots, counts = self._assign_slots(fields[self.key])
        for name, values in fields.items():
            if name not in self.fields:
                shape = (self.size + 1, *values.shape[1:])
                self.fields[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
            self.fields[name][slots] = values.detach()
        self.n_seen = self.n_seen + counts
        self.n_offered += len(slots)

    def _assign_slots(self, group: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) a slot for each row, and (n_groups,) how many rows each group has.

        No slot is assigned twice except the extra one, whose samples are not stored.
        """
        rank, counts = ranks(group, len(self.n_seen))
        slots = group * self.per_group + (self.n_seen[group] + rank) % self.per_group
        return torch.where(rank < counts[group] - self.per_group, self.size, slots), counts

    def sample(self, n: int) -> dict[str, Tensor]:
        """`n` samples, uniformly; distinct while there are enough of them; each field (n, ...)."""
        slots = rows_where(self.occupied(), n, self.generator)
        return {name: values.index_select(0, slots) for name, values in self.fields.items()}

    def stored(self) -> dict[str, Tensor]:
        """All samples it holds, group after group; reads the device."""
        occupied = self.occupied()
        return {name: values[:-1][occupied] for name, values in self.fields.items()}

    def state_dict(self) -> State:
        """Contents, counters and the state of the generator."""
        state = {"n_seen": self.n_seen, "n_offered": self.n_offered}
        return state | {"generator": self.generator.get_state(), "fields": dict(self.fields)}

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        self.n_seen, self.n_offered = state["n_seen"].to(self.device), state["n_offered"]
        self.generator.set_state(state["generator"].cpu())
        self.fields = {name: values.to(self.device) for name, values in state["fields"].items()}


def ranks(group: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """(N,) how many earlier rows are of the row's group, and (n_groups,) how many rows are of each."""
    counts = class_counts(group, n_groups)
    order = torch.argsort(group, stable=True)
    position = torch.empty_like(order)  # of each row when rows are sorted by group
    position[order] = torch.arange(len(group), device=group.device)
    return position - (counts.cumsum(0) - counts)[group], counts
