"""Exemplar memory: the same number of samples of every class of every task, renewed when a task ends.

Source: Rebuffi et al. 2017, iCaRL (arXiv 1611.07725), Algorithms 4 and 5. Which samples are the best is not
decided here: `renew` takes a function that chooses them (herding, coresets, scores, chance).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engram.utils.buffers import selection
from engram.utils.buffers.memory import MemorySetup, State
from engram.utils.buffers.reservoir import Buffer
from engram.utils.errors import UserError
from engram.utils.transfer import send

# (rows of a group's candidates (n,), k) → at most k of them, the best first.
Choice = Callable[[Tensor, int], Tensor]


class ExemplarMemory(Buffer):
    """At most `size` samples, the same number for each class of each task seen; best exemplars first.

    A group is a class of a task: a class that comes back in another domain has slots for each. Fields are
    as in `Buffer`, with `y` and `task_id`. The contents change in `renew` only, so within a task they are
    those of past tasks. Raises `UserError` for a size that leaves some group fewer than `per_group` slots
    at the end of the stream.
    """

    def __init__(self, size: int, setup: MemorySetup, per_group: int = 1):
        super().__init__(size, setup.generator("buffer"), setup.device)
        masks = setup.benchmark.class_masks
        least = per_group * int(masks.sum())
        if 0 < size < least:
            raise UserError(
                f"--buffer_size {size}: {per_group} slot{'s' * (per_group > 1)} for each class of each task "
                f"are needed; give at least {least}, or 0 for no memory"
            )
        self.group_of = masks.flatten().cumsum(0).view_as(masks) - 1  # (T, C) number of a task's class
        self.n_groups = [0, *masks.sum(1).cumsum(0).tolist()]  # in the first 0, 1, ... tasks
        self.n_tasks = 0
        self.n_shares, self.order = 0, torch.empty(0, dtype=torch.long)

    def quotas(self, n_tasks: int) -> list[int]:
        """Slots of each group when `n_tasks` tasks have been learned."""
        return selection.quotas(self.size, self.n_groups[n_tasks])

    def renew(self, task: int, choose: Choice, reselect: bool = False, **fields: Tensor) -> None:
        """Keep the best exemplars of old groups and add the best samples of the task just learned.

        fields: of all of the task's samples, (N, ...). choose: takes rows of what is stored followed by the
        task's samples. reselect: `choose` also decides anew on the groups that are already stored; otherwise
        these are cut to their new size, last exemplars first.
        """
        if not self.size:
            return
        old, n_old = self.stored(), self.n_groups[task]
        task_id, y = (torch.cat([*([old[n]] if old else []), fields[n]]) for n in ("task_id", "y"))
        group, chosen = self.group_of[task_id, y], []
        for i, quota in enumerate(self.quotas(task + 1)):
            rows = torch.nonzero(group == i).view(-1)
            decide = (reselect or i >= n_old) and quota and len(rows)
            chosen.append(choose(rows, quota) if decide else rows[:quota])
        rows, renewed = torch.cat(chosen), {}
        for name, values in fields.items():
            candidates = torch.cat((old[name], values.detach())) if old else values.detach()
            renewed[name] = candidates.index_select(0, rows)
        self.storage.load(renewed)
        self.n_seen, self.n_tasks, self.n_shares = len(rows), task + 1, 0

    def ranks(self) -> Tensor:
        """(n,) rank of each stored sample in its group, 0 for the best."""
        stored = self.stored()
        group = self.group_of[stored["task_id"], stored["y"]]
        counts = group.bincount()
        return torch.arange(len(group), device=self.device) - (counts.cumsum(0) - counts)[group]

    def share(self, n_steps: int) -> dict[str, Tensor]:
        """The next of `n_steps` shares into which a random order divides the contents.

        `n_steps` calls give every exemplar once; the call after them draws a new order.
        """
        turn, n = self.n_shares % n_steps, len(self)
        if turn == 0:
            self.order = torch.randperm(n, generator=self.generator)
        rows = send(self.order[turn * n // n_steps : (turn + 1) * n // n_steps], self.device)
        self.n_shares += 1
        return self.at(rows)

    def state_dict(self) -> State:
        """Contents, counters, the order of the current shares and the state of the generator."""
        state = super().state_dict()
        return state | {"n_tasks": self.n_tasks, "n_shares": self.n_shares, "order": self.order}

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self.n_tasks, self.n_shares, self.order = state["n_tasks"], state["n_shares"], state["order"].cpu()
