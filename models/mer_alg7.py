"""MER, Algorithm 7: Algorithm 6 with one batch in which the current example weighs more.

Source: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference" (arXiv 1810.11910), Algorithm 7, official code `meralg7`. The same as `--model mer --mer_variant
alg7`; what departs from the paper, as the official code does, stands in `mer`.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import mer


@dataclass(frozen=True)
class Options(mer.Options):
    """The flags of Algorithm 7, which has one batch for each example and no β."""

    mer_variant: ClassVar[str] = "alg7"
    beta: ClassVar[float] = 1.0
    batches_per_example: ClassVar[int] = 1
    current: ClassVar[str] = "last"


class MERAlg7(mer.MER):
    """MER with a weight s for the current example."""

    options: Options
    off_switch = "it never trains on the first example of a run"
    quick_flags: ClassVar = {"minibatch_size": 3}
