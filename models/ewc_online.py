"""Online EWC: one running Fisher and one anchor, however many tasks there are.

Source: Schwarz et al. 2018, "Progress & Compress: A scalable framework for continual learning" (arXiv
1805.06370), section 3: F̃ ← γ F̃ + F, one anchor, and γ F̃ in the loss. The same as `--model ewc --ewc_mode
online`, which is that model's default; see `ewc` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import ewc


@dataclass(frozen=True)
class Options(ewc.Options):
    """The flags of online EWC."""

    ewc_mode: ClassVar[str] = "online"
    ewc_variant: ClassVar[str] = "standard"
    n_memories: ClassVar[int] = 10


class EWCOnline(ewc.EWC):
    """EWC with a running Fisher."""

    options: Options
