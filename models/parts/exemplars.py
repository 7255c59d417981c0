"""Exemplars: a memory with the same number of samples of every class, renewed when a task ends.

Shared by the methods that choose what to keep once a task is over (iCaRL and its descendants, Rainbow
Memory, coresets), with what they do with it: replay, the union of a task's data and the exemplars,
features, nearest-mean prediction, a frozen copy of the network.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method
from engram.models.parts.importance import evaluating
from engram.models.parts.replay import ReplayOptions, draw, joined
from engram.utils.batching import CHUNK
from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import option
from engram.utils.errors import UserError

# (rows of a group's candidates (n,), k) → at most k of them, the best first.
Choice = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class ExemplarOptions(ReplayOptions):
    """Size of the memory, and how exemplars join the training data."""

    minibatch_size: int = option(
        0,
        "exemplars joined to every step; 0: each once per epoch, as in a union of data and exemplars",
        ge=0,
    )


class ExemplarMemory(Buffer):
    """At most `size` samples, the same number for each class of each task seen; best exemplars first.

    A class that comes back in another domain has a share for each. Fields as in `Buffer`, with `y` and
    `task_id`. Contents change in `renew` only, so within a task they are those of past tasks. Raises
    `UserError` for a size that gives some group less than `per_group` places in the end.
    """

    def __init__(self, size: int, setup, per_group: int = 1):
        super().__init__(size, setup.generator("buffer"), setup.device)
        masks = setup.benchmark.class_masks
        least = per_group * int(masks.sum())
        if 0 < size < least:
            raise UserError(
                f"--buffer_size {size}: {per_group} place{'s' * (per_group > 1)} for each class of each task "
                f"are needed; give at least {least}, or 0 for no memory"
            )
        self.group_of = masks.flatten().cumsum(0).view_as(masks) - 1  # (T, C) number of a task's class
        self.n_groups = [0, *masks.sum(1).cumsum(0).tolist()]  # in the first 0, 1, ... tasks
        self.n_tasks = 0
        self.n_shares, self.order = 0, torch.empty(0, dtype=torch.long)

    def quotas(self, n_tasks: int) -> list[int]:
        """Places of each group when `n_tasks` tasks have been learned."""
        return selection.quotas(self.size, self.n_groups[n_tasks])

    def renew(self, task: Task, choose: Choice, again: bool = False, **fields: Tensor) -> None:
        """Keep old groups' best and the best of `task`'s samples, its `fields` (N, ...).

        choose: takes rows of what is stored followed by the task's samples. again: it also decides on
        the groups that are already stored, rather than cutting them to their new size.
        """
        if not self.size:
            return
        old, n_old = self.stored(), self.n_groups[task.id]
        task_id, y = (torch.cat([*([old[n]] if old else []), fields[n]]) for n in ("task_id", "y"))
        group, kept = self.group_of[task_id, y], []
        for i, quota in enumerate(self.quotas(task.id + 1)):
            rows = torch.nonzero(group == i).view(-1)
            decide = (again or i >= n_old) and quota and len(rows)
            kept.append(choose(rows, quota) if decide else rows[:quota])
        rows = torch.cat(kept)
        for name, values in fields.items():
            values = values.detach()
            pool = torch.cat((old[name], values)) if old else values
            self.fields[name] = pool.index_select(0, rows)
        self.n_seen, self.n_tasks, self.n_shares = len(rows), task.id + 1, 0

    def ranks(self) -> Tensor:
        """(n,) place of each stored sample in its group, 0 for the best."""
        stored = self.stored()
        group = self.group_of[stored["task_id"], stored["y"]]
        counts = group.bincount()
        return torch.arange(len(group), device=self.device) - (counts.cumsum(0) - counts)[group]

    def share(self, n_steps: int) -> dict[str, Tensor]:
        """The next of `n_steps` parts into which a random order divides the contents, over and over."""
        turn, n = self.n_shares % n_steps, len(self)
        if turn == 0:
            self.order = torch.randperm(n, generator=self.generator)
        rows = self.order[turn * n // n_steps : (turn + 1) * n // n_steps].to(self.device)
        self.n_shares += 1
        return {name: values.index_select(0, rows) for name, values in self.fields.items()}

    def state_dict(self) -> dict:
        """Contents, counters and the generator."""
        own = {"n_tasks": self.n_tasks, "n_shares": self.n_shares, "order": self.order}
        return super().state_dict() | own

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self.n_tasks, self.n_shares, self.order = state["n_tasks"], state["n_shares"], state["order"].cpu()


def samples_of(method, task: Task) -> dict[str, Tensor]:
    """The task's training samples as a memory's fields."""
    samples = method.setup.benchmark.train(task)
    return {"x": samples.x_raw, "y": samples.y, "task_id": samples.task_id, "index": samples.index}


def union(method, batch: Batch) -> Batch:
    """The batch, followed by exemplars of `method.buffer`, augmented as the stream's (`--minibatch_size`)."""
    memory, size = method.buffer, method.options.minibatch_size
    if not len(memory):
        return batch
    n_steps = method.setup.benchmark.n_steps(method.task, method.setup.train.batch_size)
    drawn = memory.sample(size) if size else memory.share(n_steps)
    if not len(drawn["y"]):
        return batch
    drawn |= {"x": method.augment(drawn["x"]), "x_raw": drawn["x"]}
    return Batch(*(torch.cat((own, drawn[name])) for name, own in batch._asdict().items()))


@torch.no_grad()
def evaluated(method, function: Callable[..., Tensor], raw: Tensor, *others: Tensor) -> Tensor:
    """function(x, *others) of un-augmented images (N, C, H, W), chunk by chunk, the network in eval mode."""
    normalise, size = method.setup.benchmark.augment.normalise, CHUNK[raw.device.type]
    with evaluating(method.net):
        chunks = zip(*(field.split(size) for field in (raw, *others)), strict=True)
        return torch.cat([function(normalise(part), *rest) for part, *rest in chunks])


def features(method, raw: Tensor) -> Tensor:
    """(N, D) features of un-augmented images."""
    return evaluated(method, lambda x: method.net.features(x).flatten(1), raw)


def class_means(features: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """(C, D) normalised means of normalised features (N, D) by label; NaN for a class without samples."""
    unit = F.normalize(features, dim=1)
    members = F.one_hot(y, n_classes).to(unit.dtype)
    return F.normalize(members.T @ unit / members.sum(0).unsqueeze(1), dim=1)


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """(N, C) scores −‖φ/‖φ‖ − μ_c‖²; a class without a mean comes after all that have one."""
    scores = 2 * F.normalize(features, dim=1) @ means.T - 2  # all vectors have length 1
    return scores.nan_to_num(nan=torch.finfo(scores.dtype).min)


def stored_means(method) -> Tensor:
    """(C, D) `class_means` of the exemplars; inside a task, of its own classes those of its data."""
    memory, task, benchmark = method.buffer, method.task, method.setup.benchmark
    samples = [memory.stored()] if len(memory) else []
    if task is not None and task.id >= memory.n_tasks:
        samples.append(samples_of(method, task))
    if not samples:
        return torch.full((benchmark.n_classes, method.net.feature_dim), torch.nan, device=method.device)
    x, y = (torch.cat([part[name] for part in samples]) for name in ("x", "y"))
    return class_means(features(method, x), y, benchmark.n_classes)


def at_random(generator: torch.Generator) -> Choice:
    """A choice that takes any k, uniformly; drawn on the host."""
    return lambda rows, k: rows[torch.randperm(len(rows), generator=generator)[:k].to(rows.device)]


def renew_by_score(method, task: Task, score: Tensor) -> None:
    """Give the task's places in `method.buffer` to the samples of the highest score (N,), class by class."""
    n_old = len(method.buffer)

    def choose(rows: Tensor, k: int) -> Tensor:
        return rows[score[rows - n_old].sort(descending=True, stable=True).indices[:k]]

    method.buffer.renew(task, choose, **samples_of(method, task))


def renew_by_herding(method, task: Task) -> None:
    """Give the task's places in `method.buffer` to its herded samples, by L2-normalised features."""
    if not method.buffer.size:
        return
    samples, n_old = samples_of(method, task), len(method.buffer)
    unit = F.normalize(features(method, samples["x"]), dim=1)
    method.buffer.renew(task, lambda rows, k: rows[selection.herding(unit[rows - n_old], k)], **samples)


def frozen_copy(net: nn.Module) -> nn.Module:
    """A teacher: the same network in eval mode, learning nothing."""
    return copy.deepcopy(net).eval().requires_grad_(False)


class ExemplarReplay(Method):
    """ER on exemplars of past tasks: plain SGD without them. Subclasses renew them in `end_task`."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = ExemplarMemory(options.buffer_size, setup)

    def loss(self, batch):
        """Cross-entropy over the stream's batch and one of exemplars, together."""
        x, y, task_id = joined(batch, draw(self))
        return F.cross_entropy(self.logits(x, task_id), y)
