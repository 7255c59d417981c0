"""Exemplars: what methods do with a memory that is renewed when a task ends (`ExemplarMemory`).

Shared by the methods that choose what to keep once a task is over (iCaRL and its descendants, Rainbow
Memory, coresets): replay, the union of a task's data and the exemplars, features, nearest-mean prediction,
a frozen copy of the network.
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
from engram.utils.buffers.exemplar_memory import Choice, ExemplarMemory
from engram.utils.config.options import option


@dataclass(frozen=True)
class ExemplarOptions(ReplayOptions):
    """Size of the memory, and how exemplars join the training data."""

    minibatch_size: int = option(
        0,
        "exemplars joined to every step; 0: each once per epoch, as in a union of data and exemplars",
        ge=0,
    )


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

    method.buffer.renew(task.id, choose, **samples_of(method, task))


def renew_by_herding(method, task: Task) -> None:
    """Give the task's places in `method.buffer` to its herded samples, by L2-normalised features."""
    if not method.buffer.size:
        return
    samples, n_old = samples_of(method, task), len(method.buffer)
    unit = F.normalize(features(method, samples["x"]), dim=1)
    method.buffer.renew(task.id, lambda rows, k: rows[selection.herding(unit[rows - n_old], k)], **samples)


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
