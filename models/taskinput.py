"""A first layer for each task under layers that all tasks share: input-side task knowledge.

Source: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), baseline `multimodal`; Riemer et al. 2019 (MER),
baseline `task input`, official code `taskinput`: a network of n hidden layers whose first one every task
has for itself. Weights as PyTorch initialises a linear layer, not Xavier as everywhere else, biases 0.
A sample's task must be known: task-IL, and domain-IL as in MER's streams.
Differs from that code: with more than two hidden layers all biases are 0 (there the second shared one's
on are not).
"""

from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.backbones.mlp import TaskInputMLP, require_mlp
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.utils import seeding
from engram.utils.config.options import OptionSet


class TaskInput(Method):
    """The contract's defaults on a network with an input layer per task."""

    scenarios = ("task-il", "domain-il")
    needs_boundaries = True
    off_switch = "it has another network: a first layer per task"
    eager_step = ""

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        require_mlp(net, "taskinput")
        with seeding.isolated(setup.seed, "init"):
            network = TaskInputMLP(net, len(setup.benchmark.tasks))
        super().__init__(network.to(setup.device), options, setup)

    def enter(self, task: Task) -> None:
        """Only the task's own first layer learns."""
        super().enter(task)
        self.net.inputs.select(task.parts)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy through the current task's first layer."""
        with self.net.inputs.only(self.task.id):
            return super().loss(batch)
