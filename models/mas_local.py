"""Local MAS (l-MAS): Hebbian importance, products of activations in place of gradients.

Source: Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget" (arXiv 1711.09601),
section 4.2: Ω_ij = (1/N) Σ_n y_i y_j. The same as `--model mas --mas_local 1`; see `mas` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import mas


@dataclass(frozen=True)
class Options(mas.Options):
    """The flags of l-MAS, which knows no norm of the outputs."""

    mas_local: ClassVar[bool] = True
    mas_norm: ClassVar[str] = "l2sq"


class MASLocal(mas.MAS):
    """MAS without a backward pass."""

    options: Options
