"""ER with a ring memory: equally many slots for each class, the oldest samples leave first.

Source: Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486), Algorithm
1 with the ring buffer. The same as `--model er --memory class_ring`; see `er` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import er


@dataclass(frozen=True)
class Options(er.MemoryOptions):
    """The flags of every rehearsal method."""

    memory: ClassVar[str] = "class_ring"


class ERRing(er.ER):
    """ER on a ring buffer for each class."""

    options: Options
