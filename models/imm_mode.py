"""IMM, mode: predict with the Fisher-weighted mean of every task's weights; train with L2-transfer.

Source: Lee et al. 2017 (IMM, arXiv 1703.08475), mode-IMM, eq. 8-9, weight- and L2-transfer; see
models/parts/merging.py. Loss CE + λ Σ_i (θ_i − θ*_i)², no ½, θ* where the last task ended. F is the
diagonal Fisher information per sample, averaged over samples (`--fisher`, see models/parts/fisher.py),
plus 1e-8: a weight that no task cares for gets the mean.
Differs from the paper: no drop-transfer; batch-norm statistics are merged too; all tasks weigh the same.
Per-task heads are neither merged nor drawn; a head that all tasks share is both. Inside a task (--eval_every,
validation) the network in training predicts.
"""

from dataclasses import dataclass

from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Task
from engram.models.method import Setup
from engram.models.parts import fisher
from engram.models.parts.merging import IMM
from engram.utils.config.options import OptionSet, option

FLOOR = 1e-8


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of mode-IMM."""

    imm_lambda: float = option(0.01, "strength λ of L2-transfer; 0 turns it off", ge=0)
    fisher: str = option("all", "labels of the Fisher: all is exact", choices=fisher.KINDS)
    fisher_n: int = option(1000, "training samples per task for the Fisher; 0: all", ge=0)


class IMMMode(IMM):
    """A weight counts by how much the task's likelihood depends on it."""

    options: Options
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def precision(self, task: Task) -> dict[str, Tensor]:
        """The diagonal of the task's Fisher information, never quite 0."""
        parameters, options = self.quadratic.parameters, self.options
        diagonal = fisher.of_task(
            self.net, self.benchmark, parameters, task, options.fisher_n, self.draws, options.fisher,
            self.setup.train.batch_size,
        )  # fmt: skip
        return {name: value + FLOOR for name, value in diagonal.items()}
