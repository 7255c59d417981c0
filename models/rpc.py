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

from engram.backbones.backbone import Backbone
from engram.backbones.heads import PolytopeHead
from engram.datasets.benchmark import Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarReplay, at_random
from engram.models.rehearsal import ReplayOptions
from engram.utils import seeding


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of RPC."""


class RPC(ExemplarReplay):
    """ER on a head that does not learn."""

    options: Options
    scenarios = ("class-il",)
    off_switch = "it has another head: a fixed one"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        with seeding.isolated(setup.seed, "init", 1):
            net.head = PolytopeHead(net.feature_dim, setup.benchmark.n_classes).to(setup.device)
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def end_task(self, task: Task) -> None:
        """Any samples of the task, equally many of each class."""
        self.buffer.renew(task.id, at_random(self.draws), **self.task_samples(task))
