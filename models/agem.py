"""Averaged GEM (A-GEM): no step may raise the average loss on samples of all past tasks.

Source: Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM" (arXiv 1812.00420), Algorithm 1 and
eq. 11: g̃ = g − (gᵀg_ref / g_refᵀg_ref) g_ref where gᵀg_ref < 0, g_ref the gradient of the mean loss
over a batch drawn from the memories of past tasks. `--buffer_size` is the total M; each of the T tasks
has a ring of m = M // T. Nothing is read from the device: the choice is a `torch.where` there.
Differs from the paper: with several epochs a sample is stored once; replayed images are augmented as the
stream's; samples of a reference batch are distinct. With batch norm, the pass over the memory counts in
its running statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.models.method import Method
from engram.models.parts.inner_steps import flat, gradient, set_gradients
from engram.models.parts.replay import Replayed, ReplayOptions, augmented, replayed_per_step
from engram.utils.buffers.per_task_ring import ring_for


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of A-GEM: those of every replay method; --minibatch_size is that of the reference batch."""


class AGEM(Method):
    """Plain SGD whose gradient loses what would hurt the past tasks on average."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = ring_for("A-GEM", options.buffer_size, setup)

    def edit_gradients(self, batch):
        """Project the batch's gradient if it points against the reference."""
        reference = self.reference_batch()
        if reference is None:
            return
        learning = [p for p in self.trainable().values() if p.grad is not None]
        g = flat(p.grad for p in learning)
        set_gradients(learning, project(g, gradient(self, learning, reference)))

    def reference_batch(self) -> Replayed | None:
        """Distinct samples of past tasks' memories, uniformly; None in the first task."""
        past = [task for task in self.buffer.tasks() if task != self.task.id]
        if not past:
            return None
        return augmented(self, self.buffer.sample(replayed_per_step(self), past))

    def after_step(self, batch):
        """Write the batch to the current task's ring, in the first epoch."""
        if self.epoch == 0:
            self.buffer.add(self.task.id, x=batch.x_raw, y=batch.y, task_id=batch.task_id, index=batch.index)


def project(g: Tensor, reference: Tensor) -> Tensor:
    """The vector nearest to g (P,) whose inner product with the reference (P,) is not negative."""
    inner = g.dot(reference)
    return torch.where(inner < 0, g - inner / reference.dot(reference) * reference, g)
