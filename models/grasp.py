"""GRASP: replay of everything, prototypes of each class first, harder samples later.

Source: Harun et al. 2025, "GRASP: A Rehearsal Policy for Efficient Online Continual Learning" (arXiv
2308.13646): see `selection.grasp`. The same as `--model full_buffer --order grasp`; see `full_buffer` for the
rest.
"""

from dataclasses import dataclass
from typing import ClassVar

from engram.models import full_buffer


@dataclass(frozen=True)
class Options(full_buffer.Options):
    """The flags of the full buffer, which has no size."""

    order: ClassVar[str] = "grasp"


class GRASP(full_buffer.FullBuffer):
    """The full buffer, replayed in the order of GRASP."""

    options: Options
