"""Regular Polytope Classifier (RPC): ER with a fixed classifier that has room for all classes to come.

Source: Pernici et al. 2021, "Class-incremental Learning with Pre-allocated Fixed Classifiers" (ICPR; arXiv
2010.08657): the C class vectors are the vertices of a regular simplex in C − 1 dimensions, all at the same
distance from each other, and never learn; features learn to point at them. Cross-entropy over stream and
replay. The memory is class-balanced, a random choice of each task's samples at its end. Stored: uint8
images.
Differs from the paper: features reach C − 1 dimensions by a linear layer on the backbone's (there the
backbone's last layer is of that size; the same parameters).
"""

from dataclasses import dataclass

from engram.backbones.heads import PolytopeHead
from engram.models.parts import exemplars
from engram.models.parts.exemplars import ExemplarReplay
from engram.models.parts.replay import ReplayOptions
from engram.utils import seeding


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of RPC."""


class RPC(ExemplarReplay):
    """ER on a head that does not learn."""

    scenarios = ("class-il",)

    def __init__(self, net, options, setup):
        with seeding.isolated(setup.seed, "init", 1):
            net.head = PolytopeHead(net.feature_dim, setup.benchmark.n_classes).to(setup.device)
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def end_task(self, task):
        """Any samples of the task, equally many of each class."""
        samples = exemplars.samples_of(self, task)
        self.buffer.renew(task.id, exemplars.at_random(self.draws), **samples)
