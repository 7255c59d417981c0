"""ER of the MER paper, Algorithm 4: the mean over the current sample and those drawn.

Source: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference" (arXiv 1810.11910), Algorithm 4, official code `eralg4`. The same as `--model er --er_variant
alg4`; what departs from the paper, as the official code does, stands in `er`.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import er


@dataclass(frozen=True)
class Options(er.Options):
    """The flags of Algorithm 4."""

    er_variant: ClassVar[str] = "alg4"
    memory: ClassVar[str] = "reservoir"


class ERAlg4(er.ER):
    """ER on samples drawn with replacement, one step of plain SGD each."""

    options: Options
