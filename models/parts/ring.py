"""Ring memory: the last samples of every task, each task in a part of its own."""

import torch
from torch import Tensor

from utils.errors import UserError


class RingMemory:
    """`per_task` places for each of `n_tasks` tasks; a full part forgets its oldest samples first.

    Fields are declared by the first `add`: any tensors with a common first dimension, kept as
    (n_tasks · per_task, ...) on the device. Counters live on the host, so nothing is read back.
    """

    def __init__(self, n_tasks: int, per_task: int, device: torch.device):
        self.per_task, self.device = per_task, device
        self.n_seen = [0] * n_tasks
        self.fields: dict[str, Tensor] = {}

    def count(self, task: int) -> int:
        """Samples held of a task."""
        return min(self.n_seen[task], self.per_task)

    def tasks(self) -> list[int]:
        """The tasks of which something is held, in order."""
        return [task for task in range(len(self.n_seen)) if self.count(task)]

    def add(self, task: int, **fields: Tensor) -> None:
        """Append a batch (N, ...) of one task's samples; of more than `per_task` only the last are kept."""
        if not self.per_task:
            return
        n = len(next(iter(fields.values())))
        kept = min(n, self.per_task)
        turn = torch.arange(self.n_seen[task] + n - kept, self.n_seen[task] + n, device=self.device)
        slots = task * self.per_task + turn % self.per_task
        for name, values in fields.items():
            if name not in self.fields:
                shape = (len(self.n_seen) * self.per_task, *values.shape[1:])
                self.fields[name] = torch.zeros(shape, dtype=values.dtype, device=self.device)
            self.fields[name][slots] = values.detach()[n - kept :]
        self.n_seen[task] += n

    def of(self, task: int) -> dict[str, Tensor]:
        """Views of what is held of a task, each field (count, ...)."""
        start = task * self.per_task
        return {name: values[start : start + self.count(task)] for name, values in self.fields.items()}

    def stored(self) -> dict[str, Tensor]:
        """Everything held, task after task."""
        parts = [self.of(task) for task in self.tasks()]
        return {name: torch.cat([part[name] for part in parts]) for name in (self.fields if parts else ())}

    def state_dict(self) -> dict:
        """Contents and counters."""
        return {"n_seen": list(self.n_seen), "fields": dict(self.fields)}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where `state` was taken."""
        self.n_seen = list(state["n_seen"])
        self.fields = {name: values.to(self.device) for name, values in state["fields"].items()}


def ring_for(method: str, buffer_size: int, setup) -> RingMemory:
    """A memory of `buffer_size` samples in total, shared equally by the benchmark's tasks."""
    n_tasks = len(setup.benchmark.tasks)
    if 0 < buffer_size < n_tasks:
        raise UserError(
            f"--buffer_size {buffer_size}: {method} keeps a memory per task and there are {n_tasks} tasks; "
            f"give at least {n_tasks}, or 0 for no memory"
        )
    return RingMemory(n_tasks, buffer_size // n_tasks, setup.device)
