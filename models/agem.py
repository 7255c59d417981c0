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
import torch.nn.functional as F
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.models.parts.inner_steps import flat, gradient, set_gradients
from engram.models.rehearsal import Examples, ReplayOptions, TaskRingMethod


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of A-GEM: those of every replay method; --minibatch_size is that of the reference batch."""


class AGEM(TaskRingMethod):
    """Plain SGD whose gradient loses what would hurt the past tasks on average."""

    options: Options

    def edit_gradients(self, batch: Batch) -> None:
        """g ← g − (gᵀg_ref / g_refᵀg_ref) g_ref where g points against g_ref."""
        memories = self.replay()
        if memories is None:
            return
        learning = [p for p in self.trainable().values() if p.grad is not None]
        loss_ref = F.cross_entropy(self.logits(memories.x, memories.task_id), memories.y)
        g_ref = gradient(loss_ref, learning)
        g = flat(p.grad for p in learning)
        set_gradients(learning, project(g, g_ref))

    def replay(self, n: int | None = None) -> Examples | None:
        """The reference batch: distinct samples of past tasks, uniformly; None in the first task."""
        past = self.past_tasks()
        return self.augmented(self.buffer.sample(n or self.n_replayed, past)) if past else None

    def after_step(self, batch: Batch) -> None:
        """Write the batch to the current task's ring."""
        self.remember(batch)


def project(g: Tensor, reference: Tensor) -> Tensor:
    """The vector nearest to g (P,) whose inner product with the reference (P,) is not negative."""
    inner = g.dot(reference)
    return torch.where(inner < 0, g - inner / reference.dot(reference) * reference, g)
