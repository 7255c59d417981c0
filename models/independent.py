"""One network per task, each with its share of the hidden units: no forgetting, less to learn with.

Source: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), baseline `independent`, as in the MER paper's
code: T perceptrons with int(h / T) units where the shared one has h, Xavier-uniform; of cnn and the ResNets,
T networks with int(c / T) channels where the shared one has c, as GEM's code has for CIFAR. A sample is
classified by its own task's network. `--warm_start` (that code's `finetune`): a new task's network
starts as a copy of the last one's. So the task of a sample must be known: task-IL, and domain-IL as in MER's
streams.
Differs from that code: every network has all of the benchmark's classes, whatever the heads.
"""

from dataclasses import dataclass

from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.backbones.heads import PerTask, SharedHead
from engram.backbones.mlp import MLP, SplitMLP, require_mlp
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.utils import seeding
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of the independent networks."""

    warm_start: bool = option(True, "a new task's network starts as a copy of the last one's")


class NetworkPerTask(Backbone):
    """A convolutional network for each task, with its share of another one's channels; all weights new."""

    def __init__(self, net: Backbone, n_tasks: int, n_classes: int) -> None:
        super().__init__()
        self.feature_dim = net.feature_dim
        networks = [net.narrower(n_tasks) for _ in range(n_tasks)]
        self.head = PerTask(one.attach(SharedHead(one.feature_dim, n_classes)) for one in networks)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images as they are: tasks share nothing but their inputs."""
        return x


class Independent(Method):
    """The contract's defaults on a network per task."""

    options: Options
    scenarios = ("task-il", "domain-il")
    needs_boundaries = True
    off_switch = "it has another network: one per task"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        split = SplitMLP if isinstance(net, MLP) else NetworkPerTask
        if split is SplitMLP:
            require_mlp(net, "independent")
        with seeding.isolated(setup.seed, "init"):
            networks = split(net, len(setup.benchmark.tasks), setup.benchmark.n_classes)
        super().__init__(networks.to(setup.device), options, setup)

    def begin_task(self, task: Task) -> None:
        """Copy what the last task has learned."""
        if self.options.warm_start and task.id > 0:
            networks = self.net.head.copies
            networks[task.id].load_state_dict(networks[task.id - 1].state_dict())

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the current task's network."""
        with self.net.head.only(self.task.id):
            return super().loss(batch)
