"""Gradient Episodic Memory (GEM): no step may raise the loss on the memory of a past task.

Source: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning" (arXiv 1706.08840),
Algorithm 1 and eq. 11 (dual), with the official code's EPS = 1e-3 on the diagonal of GGᵀ: constraint
k holds up to EPS·v_k. `--buffer_size` is the total M; each of the T tasks has a ring of m = M // T.
Differs from the paper's code: only filled places of the memory are used (there uninitialised ones
too); of a batch that crosses the end of the ring nothing is dropped; with several epochs a sample is
stored once; replayed images are augmented as the stream's. The quadratic program is solved as
non-negative least squares. One read from the device per step, of whether a constraint is violated, is
inherent. With batch norm, the passes over the memory count in its running statistics, as there.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.method import Method
from models.parts.projection import project
from models.parts.ring import RingMemory
from utils.errors import UserError
from utils.options import OptionSet, option

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
        n_tasks = len(setup.benchmark.tasks)
        if 0 < options.buffer_size < n_tasks:
            raise UserError(
                f"--buffer_size {options.buffer_size}: GEM keeps a memory per task and there are {n_tasks} "
                f"tasks; give at least {n_tasks}, or 0 for no memory"
            )
        self.buffer = RingMemory(n_tasks, options.buffer_size // n_tasks, self.device)

    def edit_gradients(self, batch):
        """Project the batch's gradient if it violates a past task's constraint."""
        past = [task for task in self.buffer.tasks() if task != self.task.id]
        if not past:
            return
        learning = [p for p in self.trainable().values() if p.grad is not None]
        gradient = flat(p.grad for p in learning)
        memories = torch.stack([self.memory_gradient(task, learning) for task in past])
        projected = project(gradient, memories, self.options.memory_strength, EPS)
        if projected is not None:
            pieces = projected.split([p.numel() for p in learning])
            for p, piece in zip(learning, pieces, strict=True):
                p.grad.copy_(piece.view_as(p))

    def memory_gradient(self, task: int, learning: list[Tensor]) -> Tensor:
        """(P,) gradient of the mean loss over all that is kept of a task."""
        memory = self.buffer.of(task)
        logits = self.logits(self.augment(memory["x"]), memory["task_id"])
        loss = F.cross_entropy(logits, memory["y"])
        return flat(torch.autograd.grad(loss, learning, materialize_grads=True))

    def after_step(self, batch):
        """Write the batch to the current task's ring, in the first epoch."""
        if self.epoch == 0:
            self.buffer.add(self.task.id, x=batch.x_raw, y=batch.y, task_id=batch.task_id, index=batch.index)


def flat(tensors) -> Tensor:
    """(P,) all tensors one after the other."""
    return torch.cat([t.flatten() for t in tensors])
