"""Gradient Episodic Memory (GEM): no step may raise the loss on the memory of a past task.

Source: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning" (arXiv 1706.08840),
Algorithm 1 and eq. 11 (dual), with the official code's EPS = 1e-3 on the diagonal of GGᵀ, in float64. It is
absolute: a past gradient far shorter than √EPS counts for its margin alone. Where ten samples a task are
learnt by heart, an EPS relative to ‖g_k‖² lets what is left of their gradients steer every step (perm-mnist,
200 slots, seed 0: 56.8 % instead of 67.0 %; published ~66.9 %).
`--buffer_size` is the total M; each of the T tasks has a ring of m = M // T.
Differs from the paper's code: only filled slots of the memory are used (there uninitialised ones
too); of a batch that crosses the end of the ring nothing is dropped; with several epochs a sample is
stored once; replayed images are augmented as the stream's. The quadratic program is solved as non-negative
least squares; beside EPS, P has 1e-8 of ‖g_k‖², which is more from a norm of 316 on. One read from the
device per step, of whether a constraint is violated, is inherent. With batch norm, the passes over the
memory count in its running statistics, as there. That code writes a batch to the memory before its step and
not after it, which changes nothing: a step reads the memories of past tasks only. n memories per task of
the GEM and MER papers are --buffer_size n · T.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.inner_steps import InnerSteps, flat, set_gradients
from engram.models.parts.projection import project
from engram.models.rehearsal import Examples, ReplayOptions, TaskRingMethod
from engram.utils.config.options import option

EPS = 1e-3


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of GEM; it has no minibatch, as every step sees the whole memory of past tasks."""

    buffer_size: int = option(200, "samples kept in total, shared equally by all tasks; 0: plain SGD", ge=0)
    minibatch_size: ClassVar[int] = 0
    memory_strength: float = option(0.5, "margin γ: least weight of each past task's gradient", ge=0)


class GEM(TaskRingMethod):
    """Plain SGD whose gradient is projected when it would hurt a past task."""

    options: Options
    eager_step = "the quadratic program of a violated constraint is solved on the host"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.inner = InnerSteps(self)

    def edit_gradients(self, batch: Batch) -> None:
        """Project the batch's gradient if it violates a past task's constraint."""
        past = self.past_tasks()
        if not past:
            return
        learning = {name: p for name, p in self.trainable().items() if p.grad is not None}
        g = flat(p.grad for p in learning.values())
        G = self.inner.gradients_by_part(learning, *self.memories(past))
        projected = project(g, G, self.options.memory_strength, EPS)
        if projected is not None:
            set_gradients(list(learning.values()), projected)

    def memories(self, tasks: list[int]) -> tuple[Examples, list[int]]:
        """All samples in the memories of the tasks, one task after the other, and how many of each."""
        rings = [self.buffer.of(task) for task in tasks]
        x, y, task_id = (torch.cat([ring[name] for ring in rings]) for name in ("x", "y", "task_id"))
        return Examples(self.inner.inputs(x), y, task_id), [self.buffer.count(task) for task in tasks]

    def after_step(self, batch: Batch) -> None:
        """Write the batch to the current task's ring."""
        self.remember(batch)
