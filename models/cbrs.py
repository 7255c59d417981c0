"""Class-balanced reservoir: ER whose full memory evicts a sample of its largest class.

Source: the memory of Kozal et al. 2025 (arXiv 2505.17664), an ablation of `maer`: acceptance is the plain
reservoir's, eviction a random one of the most populated class. The same as `--model er --memory balanced`;
see `er` for the rest.
Differs from Chrysakis & Moens 2020, "Online Continual Learning from Imbalanced Data" (ICML), whose CBRS has
another rule of acceptance: it depends on whether the sample's class has ever been the largest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import er


@dataclass(frozen=True)
class Options(er.MemoryOptions):
    """The flags of every rehearsal method."""

    memory: ClassVar[str] = "balanced"


class CBRS(er.ER):
    """ER on a class-balanced reservoir."""

    options: Options
