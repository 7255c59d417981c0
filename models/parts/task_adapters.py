"""What methods share that have an adapter set for each task beside a frozen vision transformer."""

from typing import cast

import torch
from torch import Tensor

from engram.backbones.petl import OneOf, choose
from engram.backbones.vit import HookedViT
from engram.datasets.benchmark import Task
from engram.models.method import Method


class AdapterPerTask(Method):
    """The adapters of the current task learn; f_j(x), the features with those of task j, can be asked for."""

    net: HookedViT
    scenarios = ("class-il",)
    needs_boundaries = True
    needs_vit = True
    train_classes = "task"

    @property
    def adapters(self) -> list[OneOf]:
        """The adapters of all tasks, by block."""
        return [cast(OneOf, block.adapter) for block in self.net.blocks]

    def enter(self, task: Task) -> None:
        """The task's adapters learn, and what the head has for its classes."""
        super().enter(task)
        choose(self.adapters, task.id)
        for adapters in self.adapters:
            adapters.learn(task.id)

    def capture(self, n_steps: int) -> str:
        """Compile nothing where a step cannot be captured: then each pass writes adapters."""
        if self.eager_step:
            return f"--compile: {self.eager_step}; the network runs as it is"
        return super().capture(n_steps)

    def subspace(self, j: int, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D) f_j(x); the chosen adapters stay the current task's."""
        chosen = self.adapters[0].chosen
        choose(self.adapters, j)
        try:
            return self.net.features(x)
        finally:
            choose(self.adapters, chosen)

    def subspaces(self, x: Tensor, task: Tensor) -> Tensor:
        """(N, C, H, W) and a task of each image → (N, D) f_task(x), a pass for each task that occurs.

        How many images each task has is read from the device.
        """
        order = task.argsort(stable=True)
        counts = task.bincount(minlength=len(self.benchmark.tasks)).tolist()
        groups = enumerate(x[order].split(counts))
        return torch.cat([self.subspace(j, rows) for j, rows in groups if len(rows)])[order.argsort()]

    def all_subspaces(self, x: Tensor, n: int) -> Tensor:
        """(N, C, H, W) → (n, N, D), f_j(x) of the first n tasks, at least one."""
        return torch.stack([self.subspace(j, x) for j in range(max(1, n))])
