"""Memory Aware Synapses (MAS): weights that the outputs are sensitive to are kept, no labels needed.

Source: Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget" (arXiv 1711.09601),
eq. 3 with the squared L2 norm of the outputs (section 4.1), eq. 4:
Ω_i = (1/N) Σ_n |∂ ‖f(x_n)‖²₂ / ∂θ_i|, summed over tasks; loss CE + λ Σ_i Ω_i (θ_i − θ*_i)², no ½;
θ* are the parameters at the end of the last task. The absolute value is taken per sample.
Differs from the authors' code: that takes the absolute value of a batch's summed gradient by default;
weight decay stays L2 (there L1). A head that all tasks share is protected like any layer; per-task
heads are not, as in the paper. Gradient steps on the penalty diverge once lr · 2λ · max ΣΩ exceeds 2: a
larger λ needs a smaller --lr.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.method import Method
from models.parts import importance
from models.parts.quadratic import Quadratic
from utils.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of MAS."""

    mas_lambda: float = option(
        0.01, "strength λ of the penalty (the paper's, at small rates: 1); 0 turns it off", ge=0
    )
    mas_n: int = option(0, "training samples per task for the importance; 0: all", ge=0)


class MAS(Method):
    """Cross-entropy plus a quadratic penalty whose importances grow at the end of each task."""

    needs_boundaries = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.quadratic = Quadratic(importance.shared_parameters(net))

    def penalty(self) -> Tensor | None:
        """λ Σ Ω (θ − θ*)²."""
        return self.options.mas_lambda * self.quadratic.value() if self.quadratic else None

    def end_task(self, task):
        """Add the task's importance and move the anchor here."""
        if not self.options.mas_lambda:
            return
        omega = importance.of_task(self, task, self.options.mas_n, self.draws, squared_norm, power=1)
        old = self.quadratic.importance
        self.quadratic.set({name: new + old[name] if old else new for name, new in omega.items()})


def squared_norm(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1) ‖f(x)‖²₂ and weights of one."""
    norm = logits.square().sum(1, keepdim=True)
    return norm, torch.ones_like(norm)
