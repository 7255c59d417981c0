"""IMM, mean: predict with the mean of the weights that every task left; train with L2-transfer.

Source: Lee et al. 2017 (IMM, arXiv 1703.08475), mean-IMM, eq. 3, weight- and L2-transfer; see
models/parts/merging.py. Loss CE + λ Σ_i (θ_i − θ*_i)², no ½, θ* where the last task ended.
Differs from the paper: no drop-transfer; batch-norm statistics are merged too; all tasks weigh the same.
Per-task heads are neither merged nor drawn; a head that all tasks share is both. Inside a task (--eval_every,
validation) the network in training predicts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.datasets.benchmark import Task
from engram.models.parts.merging import IMM
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of mean-IMM."""

    imm_lambda: float = option(0.01, "strength λ of L2-transfer; 0 turns it off", ge=0)


class IMMMean(IMM):
    """Every weight of every task counts the same."""

    options: Options
    eager_step = ""

    def precision(self, task: Task) -> dict[str, Tensor]:
        """Each weight counts once for every task."""
        return {name: torch.ones_like(p) for name, p in self.quadratic.parameters.items()}
