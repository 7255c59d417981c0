"""BCSR: ER on a coreset whose weights minimise the loss on all samples, by bilevel optimisation.

Source: Hao et al. 2023, "Bilevel Coreset Selection in Continual Learning: A New Formulation and Algorithm"
(NeurIPS), eqs. 2-5 and Algorithm 1: weights w on the simplex, a model that descends Σ w_i CE_i, and steps
of w along the hypergradient of the mean CE over all samples (gradients matched through a Neumann series)
less β times a smoothed sum of the k largest weights, which leaves about k that are not 0. When a task ends
each of its classes keeps the samples with the largest weights. Stored: uint8 images.
Differs from the paper: the inner model is softmax regression on the L2-normalised features of the network
that has learned the task (there a copy of the network); candidates are a random part of the task's data;
old classes keep the best of what they have (there they are chosen again with the new ones); β is ours: with
less the weights stay spread over far more than k.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from engram.models.parts import coresets
from engram.models.parts.coresets import CoresetReplay
from engram.models.rehearsal import ReplayOptions
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of BCSR."""

    coreset_candidates: int = option(500, "random samples of each class to choose from", ge=1)
    coreset_steps: int = option(400, "steps of the weights", ge=1)
    coreset_lr: float = option(1.0, "learning rate of the inner model", gt=0)
    weight_lr: float = option(1.0, "learning rate of the weights, times the number of candidates", gt=0)
    topk_beta: float = option(0.2, "strength β of the smoothed top-k term", ge=0)


class BCSR(CoresetReplay):
    """ER on exemplars of the largest weight."""

    quick_flags: ClassVar = {"coreset_steps": 3}
    options: Options

    def weigh(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        """Weights on the simplex, of which about k are not 0."""
        o = self.options
        return coresets.bilevel_weights(
            x, y, k, o.coreset_steps, o.coreset_lr, o.weight_lr, o.topk_beta, self.draws
        )
