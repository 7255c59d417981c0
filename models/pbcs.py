"""PBCS: ER on a coreset whose samples' chances of being kept are learned by policy gradient.

Source: Zhou et al. 2022, "Probabilistic Bilevel Coreset Selection" (ICML), eqs. 3-6 and Algorithm 1: every
sample is kept with its own probability s_i, Σ s_i = k; draw a subset, train a model on it, and move s
against the policy gradient of the model's loss on all samples, projected onto 0 ≤ s ≤ 1, Σ s = k. When a
task ends each of its classes keeps the samples with the largest s. Stored: uint8 images.
Differs from the paper: the model is softmax regression on the L2-normalised features of the network that
has learned the task (there a small convolutional net); the gradient is the natural one, A (m − s), with A
the loss against its running mean, in units of its usual deviation (there L ∂ log p / ∂s); candidates are
a random part of the task's data.
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
    """These are the flags of PBCS."""

    coreset_candidates: int = option(500, "random samples of each class to choose from", ge=1)
    coreset_steps: int = option(500, "subsets drawn, and steps of the probabilities", ge=1)
    coreset_lr: float = option(1.0, "learning rate of a subset's model", gt=0)
    coreset_eta: float = option(0.05, "learning rate of the probabilities", gt=0)


class PBCS(CoresetReplay):
    """ER on exemplars of the largest probability."""

    quick_flags: ClassVar = {"coreset_steps": 3}
    options: Options

    def weigh(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        """Each candidate's probability of being kept; they sum to k."""
        o = self.options
        return coresets.inclusion_probabilities(
            x, y, k, o.coreset_steps, o.coreset_lr, o.coreset_eta, self.draws
        )
