"""Online learning: plain SGD on one example after the other, the lower bound of the MER paper.

Source: Riemer et al. 2019 (arXiv 1810.11910), baseline `online`; Lopez-Paz & Ranzato 2017 (GEM), `single`.
It is `sgd` under the papers' name: --batch_size 1 makes it online (GEM's runs: 10), --n_epochs 1.
"""

from engram.models.method import Method
from engram.models.parts.inner_steps import compiled_step, kernel_of
from engram.models.parts.replay import Replayed


class Online(Method):
    """The contract's defaults; the step in compiled form where it fits."""

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        kernel_of(self)

    def observe(self, batch):
        """One step of SGD on the batch."""
        loss = compiled_step(self, Replayed(batch.x, batch.y, batch.task_id))
        return super().observe(batch) if loss is None else {"loss": loss}
