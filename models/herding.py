"""Herding: ER on exemplars whose mean feature follows that of their class, chosen when a task ends.

Source: Welling 2009, "Herding dynamical weights to learn"; as a memory: Rebuffi et al. 2017, iCaRL (arXiv
1611.07725), Algorithm 4; with ER: the memorization paper's baseline (Kozal et al. 2025, arXiv 2505.17664).
Each class of each task seen has the same number of exemplars; of old ones the first chosen stay. Stored:
uint8 images.
Differs from that baseline: during a task the memory holds past tasks only (there a reservoir of the
current task too); features are L2-normalised, as in iCaRL.
"""

from dataclasses import dataclass

from engram.datasets.benchmark import Task
from engram.models.parts.exemplars import ExemplarReplay
from engram.models.rehearsal import ReplayOptions


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of ER with herding."""


class Herding(ExemplarReplay):
    """ER on exemplars that are herded when a task ends."""

    options: Options

    def end_task(self, task: Task) -> None:
        """Herd the task's exemplars by the features of the network that has just learned it."""
        self.keep_herded(task)
