"""Heads: the classifiers on a backbone (one for all tasks, one per task, cosine, fixed), and `PerTask`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedHead(nn.Linear):
    """One linear layer over all classes."""

    def forward(self, features: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, D) → (N, C); the task is not used."""
        return super().forward(features)

    def select(self, task_ids: tuple[int, ...]) -> None:
        """Nothing to select: every task trains the whole head."""


class TaskHeads(nn.Module):
    """One linear layer per task.

    Tasks with classes of their own: logits are the heads side by side, (N, C), and the caller masks
    what is not the task's. Tasks that share their classes (domains): each sample gets the logits of
    its own task's head.
    """

    def __init__(self, feature_dim: int, classes: list[tuple[int, ...]]):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(feature_dim, len(c)) for c in classes)
        self.n_shared = len(classes[0]) if len(set(classes)) == 1 and len(classes) > 1 else 0

    def forward(self, features: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, D), (N,) → (N, C) logits."""
        layers = cast(list[nn.Linear], list(self.heads))
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        logits = F.linear(features, weight, bias)
        if not self.n_shared:
            return logits
        if task_id is None:
            raise ValueError("per-task heads over shared classes need task_id")
        by_task = logits.view(len(features), len(self.heads), self.n_shared)
        # expand + gather rather than indexing with two tensors: vmap can batch it
        choice = task_id.view(-1, 1, 1).expand(-1, 1, self.n_shared)
        return by_task.gather(1, choice).squeeze(1)

    def select(self, task_ids: tuple[int, ...]) -> None:
        """Let only these tasks' heads learn, so that weight decay cannot touch the others."""
        for i, head in enumerate(self.heads):
            head.requires_grad_(i in task_ids)


class CosineHead(nn.Module):
    """Logits scale · cos(features, embedding of the class); a task's embeddings learn in that task only.

    Shared by all tasks, whose classes are their own; the scale is learned.
    """

    def __init__(self, feature_dim: int, classes: list[tuple[int, ...]], scale: float):
        super().__init__()
        bound = feature_dim**-0.5  # as nn.Linear's
        new = (torch.empty(len(c), feature_dim).uniform_(-bound, bound) for c in classes)
        self.embeddings = nn.ParameterList(new)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def cosines(self, features: Tensor) -> Tensor:
        """Cosine of each feature vector and class embedding, (N, D) → (N, C)."""
        return F.normalize(features, dim=1) @ F.normalize(torch.cat(list(self.embeddings)), dim=1).T

    def forward(self, features: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, D) → (N, C); the task is not used."""
        return self.scale * self.cosines(features)

    def select(self, task_ids: tuple[int, ...]) -> None:
        """Let only these tasks' embeddings learn, so that weight decay cannot touch the others."""
        for i, embedding in enumerate(self.embeddings):
            embedding.requires_grad_(i in task_ids)


class PolytopeHead(nn.Module):
    """Logits are inner products with the vertices of a regular simplex, which never learn.

    A linear layer, which does, brings the features to the simplex's C − 1 dimensions.
    """

    def __init__(self, feature_dim: int, n_classes: int):
        super().__init__()
        self.projection = nn.Linear(feature_dim, n_classes - 1)
        self.register_buffer("vertices", simplex(n_classes))

    def forward(self, features: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, D) → (N, C); the task is not used."""
        return self.projection(features) @ self.vertices.T

    def select(self, task_ids: tuple[int, ...]) -> None:
        """Nothing to select: every task trains the projection."""


def simplex(n: int) -> Tensor:
    """(n, n − 1) vertices of a regular simplex around the origin, of length 1; n at least 2."""
    m = n - 1
    last = torch.full((1, m), (1 - n**0.5) / m, dtype=torch.float64)  # as far from all e_i as they are apart
    points = torch.cat((torch.eye(m, dtype=torch.float64), last))
    return F.normalize(points - points.mean(0), dim=1).float()


class OneTaskAtATime:
    """For modules that look up every sample's task, unless all are known to be of one."""

    _only: int | None = None

    @contextmanager
    def only(self, task: int) -> Iterator[None]:
        """Inside, all samples are known to be of this task."""
        self._only = task
        try:
            yield
        finally:
            self._only = None


class PerTask(OneTaskAtATime, nn.Module):
    """Copies of a module, one for each task: each sample goes through its own task's."""

    def __init__(self, copies: Iterable[nn.Module]):
        super().__init__()
        self.copies = nn.ModuleList(copies)

    def forward(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, ...), (N,) → (N, ...). The tasks that occur are read from the device, except in `only`."""
        if self._only is not None:
            return self.copies[self._only](x)
        order = task_id.argsort(stable=True)
        counts = task_id.bincount(minlength=len(self.copies)).tolist()
        pairs = zip(self.copies, x[order].split(counts), strict=True)
        return torch.cat([copy(rows) for copy, rows in pairs if len(rows)])[order.argsort()]

    def select(self, task_ids: tuple[int, ...]) -> None:
        """Let only these tasks' copies learn."""
        for i, copy in enumerate(self.copies):
            copy.requires_grad_(i in task_ids)


Head = SharedHead | TaskHeads | CosineHead | PolytopeHead | PerTask
