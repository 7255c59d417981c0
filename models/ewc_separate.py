"""EWC as first published: a Fisher and an anchor for each past task.

Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks" (arXiv 1612.00796),
eq. 3, summed over past tasks. The same as `--model ewc --ewc_mode separate`; see `ewc` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import ewc


@dataclass(frozen=True)
class Options(ewc.Options):
    """The flags of EWC with an anchor per task."""

    ewc_mode: ClassVar[str] = "separate"
    gamma: ClassVar[float] = 1.0
    ewc_variant: ClassVar[str] = "standard"
    n_memories: ClassVar[int] = 10


class EWCSeparate(ewc.EWC):
    """EWC whose penalty is the sum of all past tasks' quadratics."""

    options: Options
