"""Loss-Aware Reservoir Sampling (LARS): ER whose memory gives up first what is learned well.

Source: Buzzega et al. 2021, "Rethinking Experience Replay: a Bag of Tricks for Continual Learning" (arXiv
2010.05595), section IV: a full reservoir evicts a sample with a chance that grows as its last known loss
falls. The same as `--model er --memory loss_aware`; see `er` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import er


@dataclass(frozen=True)
class Options(er.MemoryOptions):
    """The flags of every rehearsal method."""

    memory: ClassVar[str] = "loss_aware"


class LARS(er.ER):
    """ER on a loss-aware reservoir."""

    options: Options
