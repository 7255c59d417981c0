"""Online learning: plain SGD on one example after the other, the lower bound of the MER paper.

Source: Riemer et al. 2019 (arXiv 1810.11910), baseline `online`; Lopez-Paz & Ranzato 2017 (GEM), `single`.
It is `sgd` under the papers' name: --batch_size 1 makes it online (GEM's runs: 10), --n_epochs 1.
"""

from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Method, Setup
from engram.models.parts.inner_steps import InnerSteps
from engram.models.rehearsal import Examples
from engram.utils.config.options import OptionSet


class Online(Method):
    """The contract's defaults; small networks take their steps in compiled form."""

    off_switch = "it is plain SGD"
    eager_step = "samples are taken one by one, in a compiled kernel of their own"

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.inner = InnerSteps(self)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """One step of SGD on the batch."""
        return {"loss": self.inner.step(Examples(batch.x, batch.y, batch.task_id))}
