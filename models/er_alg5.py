"""ER of the MER paper, Algorithm 5: the sum over tasks of the mean loss of each task.

Source: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference" (arXiv 1810.11910), Algorithm 5, official code `eralg5`. The same as `--model er --er_variant
alg5`; what departs from the paper, as the official code does, stands in `er`.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import er


@dataclass(frozen=True)
class Options(er.Options):
    """The flags of Algorithm 5."""

    er_variant: ClassVar[str] = "alg5"
    memory: ClassVar[str] = "reservoir"


class ERAlg5(er.ER):
    """ER whose tasks all weigh the same in a step."""

    options: Options
    off_switch: ClassVar = {"buffer_size": 0, "batch_size": 1}
