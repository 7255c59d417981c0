"""Gradient Episodic Memory (GEM): no step may raise the loss on the memory of a past task.

Source: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning" (arXiv 1706.08840),
Algorithm 1 and eq. 11 (dual), with the official code's EPS = 1e-3 on the diagonal of GGᵀ: constraint
k holds up to EPS·v_k. `--buffer_size` is the total M; each of the T tasks has a ring of m = M // T.
Differs from the paper's code: only filled places of the memory are used (there uninitialised ones
too); of a batch that crosses the end of the ring nothing is dropped; with several epochs a sample is
stored once; replayed images are augmented as the stream's. The quadratic program is solved as
non-negative least squares. One read from the device per step, of whether a constraint is violated, is
inherent. With batch norm, the passes over the memory count in its running statistics, as there. That
code writes a batch to the memory before its step and not after it, which changes nothing: a step reads
the memories of past tasks only. n memories per task of the GEM and MER papers are --buffer_size n · T.
"""

from dataclasses import dataclass

import torch

from engram.models.method import Method
from engram.models.parts.inner_steps import flat, gradients_by_part, images, kernel_of, set_gradients
from engram.models.parts.projection import project
from engram.models.parts.replay import Replayed
from engram.utils.buffers.per_task_ring import ring_for
from engram.utils.config.options import OptionSet, option

EPS = 1e-3


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of GEM."""

    buffer_size: int = option(200, "samples kept in total, shared equally by all tasks; 0: plain SGD", ge=0)
    memory_strength: float = option(0.5, "margin γ: least weight of each past task's gradient", ge=0)


class GEM(Method):
    """Plain SGD whose gradient is projected when it would hurt a past task."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = ring_for("GEM", options.buffer_size, setup)
        kernel_of(self)

    def edit_gradients(self, batch):
        """Project the batch's gradient if it violates a past task's constraint."""
        past = [task for task in self.buffer.tasks() if task != self.task.id]
        if not past:
            return
        learning = {name: p for name, p in self.trainable().items() if p.grad is not None}
        gradient = flat(p.grad for p in learning.values())
        memories = gradients_by_part(self, learning, *self.kept(past))
        projected = project(gradient, memories, self.options.memory_strength, EPS)
        if projected is not None:
            set_gradients(list(learning.values()), projected)

    def kept(self, tasks: list[int]) -> tuple[Replayed, list[int]]:
        """All samples in the memories of the tasks, one task after the other, and how many of each."""
        parts = [self.buffer.of(task) for task in tasks]
        x, y, task_id = (torch.cat([part[name] for part in parts]) for name in ("x", "y", "task_id"))
        return Replayed(images(self, x), y, task_id), [self.buffer.count(task) for task in tasks]

    def after_step(self, batch):
        """Write the batch to the current task's ring, in the first epoch."""
        if self.epoch == 0:
            self.buffer.add(self.task.id, x=batch.x_raw, y=batch.y, task_id=batch.task_id, index=batch.index)
