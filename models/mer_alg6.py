"""MER, Algorithm 6: one big batch for each example, then a Reptile step.

Source: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference" (arXiv 1810.11910), Algorithm 6, official code `meralg6`. The same as `--model mer --mer_variant
alg6`; what departs from the paper, as the official code does, stands in `mer`.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import mer


@dataclass(frozen=True)
class Options(mer.Options):
    """The flags of Algorithm 6, which has no β."""

    mer_variant: ClassVar[str] = "alg6"
    beta: ClassVar[float] = 1.0
    current_weight: ClassVar[float] = 1.0
    current: ClassVar[str] = "last"


class MERAlg6(mer.MER):
    """MER with the Reptile step γ after each batch."""

    options: Options
    off_switch: ClassVar = {"buffer_size": 0, "gamma": 1, "batches_per_example": 1, "batch_size": 1}
