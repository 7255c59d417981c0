"""A-GEM with a reservoir: A-GEM's projection on streams without task boundaries.

Source: a baseline of Buzzega et al. 2020 (DER, arXiv 2004.07211); the projection is that of Chaudhry et al.
2019 (A-GEM, arXiv 1812.00420), eq. 11: g̃ = g − (gᵀg_ref / g_refᵀg_ref) g_ref where gᵀg_ref < 0. The
reference batch comes from one reservoir of raw images, which holds samples of the current task too.
Differs from mammoth: replayed images are augmented and normalised as the stream's (there neither); with
several epochs a sample is offered to the memory once. With batch norm, the pass over the memory counts in
its running statistics, as there.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from engram.datasets.benchmark import Batch
from engram.models.agem import project
from engram.models.parts.inner_steps import flat, gradient, set_gradients
from engram.models.rehearsal import RehearsalMethod, ReplayOptions


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of A-GEM-R: those of every replay method; --minibatch_size is that of the reference batch."""


class AGEMR(RehearsalMethod):
    """Plain SGD whose gradient loses what would hurt the memory on average."""

    options: Options
    eager_step = ""

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

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the reservoir."""
        self.remember(batch)
