"""Progressive Neural Networks (PNN): a new column of layers per task, which reads the frozen old ones.

Source: Rusu et al. 2016, "Progressive Neural Networks" (arXiv 1606.04671), eq. 2 with adapters: layer i of
column k is σ(W h_{i−1}^k + U σ(V α h_{i−1}^{<k})), the scalars α, V and U learned with the column; the
output layer has an adapter too. Only the task's own column learns, so nothing is forgotten; parameters
grow with the square of the number of tasks. Task-IL: a sample is classified by its own task's column.
Columns are of the shape of --backbone mlp or cnn.
Differs from the paper: all columns exist from the start, unused; α starts at 1 (there at small random
values). The class-IL view compares logits of columns that never met.
"""

from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Method, Setup
from engram.models.parts.progressive import ProgressiveNet
from engram.utils import seeding
from engram.utils.config.options import OptionSet


class PNN(Method):
    """The contract's defaults on a network that has a column per task."""

    scenarios = ("task-il",)
    needs_boundaries = True
    off_switch = "it has another network: a column per task"
    eager_step = ""

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        classes = [task.classes for task in setup.benchmark.tasks]
        with seeding.isolated(setup.seed, "init", 1):
            columns = ProgressiveNet(net, classes)
        super().__init__(columns.to(setup.device), options, setup)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the current task's column."""
        with self.net.head.only(self.task.id):
            return super().loss(batch)
