"""Loss-Aware Balanced Reservoir Sampling (LABRS): LARS that also spares small classes.

Source: Buzzega et al. 2021, "Rethinking Experience Replay: a Bag of Tricks for Continual Learning" (arXiv
2010.05595), section IV: a full reservoir evicts samples of large classes and of small losses first. The same
as `--model er --memory loss_aware_balanced`; see `er` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import er


@dataclass(frozen=True)
class Options(er.MemoryOptions):
    """The flags of every rehearsal method."""

    memory: ClassVar[str] = "loss_aware_balanced"


class LABRS(er.ER):
    """ER on a reservoir that weighs losses and class sizes."""

    options: Options
