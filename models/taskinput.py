"""A first layer for each task under layers that all tasks share: input-side task knowledge.

Source: Lopez-Paz & Ranzato 2017 (GEM, arXiv 1706.08840), baseline `multimodal`; Riemer et al. 2019 (MER),
baseline `task input`, official code `taskinput`: a network of n hidden layers whose first one every task
has for itself. Weights as PyTorch initialises a linear layer, not Xavier as everywhere else, biases 0.
Differs from that code: with more than two hidden layers all biases are 0 (there the second shared one's
on are not).
"""

from engram.backbones.mlp import TaskInputMLP, require_mlp
from engram.models.method import Method
from engram.utils import seeding


class TaskInput(Method):
    """The contract's defaults on a network with an input layer per task."""

    needs_boundaries = True

    def __init__(self, net, options, setup):
        require_mlp(net, "taskinput")
        with seeding.isolated(setup.seed, "init"):
            network = TaskInputMLP(net, len(setup.benchmark.tasks))
        super().__init__(network.to(setup.device), options, setup)

    def enter(self, task):
        """Only the task's own first layer learns."""
        super().enter(task)
        self.net.inputs.select(task.parts)

    def loss(self, batch):
        """Cross-entropy through the current task's first layer."""
        with self.net.inputs.only(self.task.id):
            return super().loss(batch)
