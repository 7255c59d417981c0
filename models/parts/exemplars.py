"""Exemplars: what methods do with a memory that is renewed when a task ends (`ExemplarMemory`).

Shared by the methods that choose what to keep once a task is over (iCaRL and its descendants, Rainbow
Memory, coresets): replay, the union of a task's data and the exemplars, herding, nearest-mean prediction.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.datasets.benchmark import Batch, Task
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.buffers import selection
from engram.utils.buffers.exemplar_memory import Choice, ExemplarMemory
from engram.utils.config.options import option
from engram.utils.transfer import send


@dataclass(frozen=True)
class ExemplarOptions(ReplayOptions):
    """Size of the memory, and how exemplars join the training data."""

    minibatch_size: int = option(
        0,
        "exemplars joined to every step; 0: each once per epoch, as in a union of data and exemplars",
        ge=0,
    )


def class_means(features: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """(C, D) normalised means of normalised features (N, D) by label; NaN for a class without samples."""
    unit = F.normalize(features, dim=1)
    members = F.one_hot(y, n_classes).to(unit.dtype)
    return F.normalize(members.T @ unit / members.sum(0).unsqueeze(1), dim=1)


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """(N, C) scores −‖φ/‖φ‖ − μ_c‖²; a class without a mean comes after all that have one."""
    scores = 2 * F.normalize(features, dim=1) @ means.T - 2  # all vectors have length 1
    return scores.nan_to_num(nan=torch.finfo(scores.dtype).min)


def at_random(generator: torch.Generator) -> Choice:
    """A choice that takes any k, uniformly; drawn on the host."""
    return lambda rows, k: rows[send(torch.randperm(len(rows), generator=generator)[:k], rows.device)]


class ExemplarMethod(RehearsalMethod):
    """A rehearsal method whose memory is an `ExemplarMemory`, renewed by `end_task`."""

    buffer: ExemplarMemory
    needs_boundaries = True
    eager_step = "the host counts how far the random order of exemplars has been replayed"

    def make_buffer(self) -> ExemplarMemory:
        """An empty memory with the same number of slots for each class of each task."""
        return ExemplarMemory(self.options.buffer_size, self.setup)

    def task_samples(self, task: Task) -> dict[str, Tensor]:
        """The task's training samples as a memory's fields."""
        x, y, task_id, index = self.benchmark.train(task)
        return {"x": x, "y": y, "task_id": task_id, "index": index}

    def union(self, batch: Batch) -> Batch:
        """The batch, followed by exemplars, augmented as the stream's: a step on the union of both.

        `--minibatch_size` exemplars; by default the next part of a random order, so that each occurs once in
        an epoch. `y_on_host` remains that of the stream's samples.
        """
        if not len(self.buffer):
            return batch
        n_steps = self.benchmark.n_steps(self.task, self.setup.train.batch_size)
        size = self.options.minibatch_size
        drawn = self.buffer.sample(size) if size else self.buffer.share(n_steps)
        if not len(drawn["y"]):
            return batch
        drawn |= {"x": self.augment(drawn["x"]), "x_raw": drawn["x"]}
        on_device = {name: getattr(batch, name) for name in ("x", "x_raw", "y", "task_id", "index")}
        return batch._replace(**{name: torch.cat((own, drawn[name])) for name, own in on_device.items()})

    def stored_means(self) -> Tensor:
        """(C, D) `class_means` of the exemplars; inside a task, of its own classes those of its data."""
        pools = [self.buffer.stored()] if len(self.buffer) else []
        if self.task is not None and self.task.id >= self.buffer.n_tasks:
            pools.append(self.task_samples(self.task))
        n_classes = self.benchmark.n_classes
        if not pools:
            return torch.full((n_classes, self.net.feature_dim), torch.nan, device=self.device)
        x, y = (torch.cat([pool[name] for pool in pools]) for name in ("x", "y"))
        return class_means(self.features(x), y, n_classes)

    def keep_highest(self, task: Task, score: Tensor) -> None:
        """Give the task's share of the memory to its samples of the highest score (N,), class by class."""
        n_old = len(self.buffer)

        def choose(rows: Tensor, k: int) -> Tensor:
            return rows[score[rows - n_old].sort(descending=True, stable=True).indices[:k]]

        self.buffer.renew(task.id, choose, **self.task_samples(task))

    def keep_herded(self, task: Task) -> None:
        """Give the task's share of the memory to its herded samples, by L2-normalised features."""
        if not self.buffer.size:
            return
        samples, n_old = self.task_samples(task), len(self.buffer)
        unit = F.normalize(self.features(samples["x"]), dim=1)
        self.buffer.renew(task.id, lambda rows, k: rows[selection.herding(unit[rows - n_old], k)], **samples)


class ExemplarReplay(ExemplarMethod):
    """ER on exemplars of past tasks: plain SGD without them. Subclasses renew them in `end_task`."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the stream's batch and a batch of exemplars."""
        x, y, task_id = self.with_replay(batch)
        return F.cross_entropy(self.logits(x, task_id), y)
