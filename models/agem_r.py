"""A-GEM with a reservoir: A-GEM's projection on streams without task boundaries.

Source: a baseline of Buzzega et al. 2020 (DER, arXiv 2004.07211); the projection is that of Chaudhry et al.
2019 (A-GEM, arXiv 1812.00420), eq. 11: g̃ = g − (gᵀg_ref / g_refᵀg_ref) g_ref where gᵀg_ref < 0. The
reference batch comes from one reservoir of raw images, which holds samples of the current task too.
Differs from mammoth: replayed images are augmented and normalised as the stream's (there neither); with
several epochs a sample is offered to the memory once. With batch norm, the pass over the memory counts in
its running statistics, as there.
"""

from dataclasses import dataclass

from engram.models.agem import project
from engram.models.method import Method
from engram.models.parts.inner_steps import flat, gradient, set_gradients
from engram.models.parts.replay import ReplayOptions, draw, store
from engram.utils.buffers.reservoir import Buffer


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of A-GEM-R: those of every replay method; --minibatch_size is that of the reference batch."""


class AGEMR(Method):
    """Plain SGD whose gradient loses what would hurt the memory on average."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)

    def edit_gradients(self, batch):
        """Project the batch's gradient if it points against the reference."""
        reference = draw(self)
        if reference is None:
            return
        learning = [p for p in self.trainable().values() if p.grad is not None]
        g = flat(p.grad for p in learning)
        set_gradients(learning, project(g, gradient(self, learning, reference)))

    def after_step(self, batch):
        """Reservoir update."""
        store(self, batch)
