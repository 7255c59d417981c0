"""MAS with task weights: every task has the same total importance, in any order of tasks.

Source: new here, on Aljundi et al. 2018 (MAS, arXiv 1711.09601): tasks are weighed by α_t with equal
α_t Σ_ij Ω_t,ij and Σ_t α_t = λ. The same as `--model mas --mas_consistent 1`; see `mas` for the rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import mas


@dataclass(frozen=True)
class Options(mas.Options):
    """The flags of MAS with task weights, which are those of a sum."""

    mas_consistent: ClassVar[bool] = True
    mas_merge: ClassVar[str] = "sum"
    mas_alpha: ClassVar[float] = 0.5


class MASConsistent(mas.MAS):
    """MAS in which no task outweighs the others."""

    options: Options
