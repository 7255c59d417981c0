"""iCaRL: herded exemplars, distillation by binary cross-entropy, nearest-mean classification.

Source: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning" (arXiv
1611.07725), Algorithms 1-5. Training (Algorithm 3) on the union of the task's data and the exemplars:
Σ over seen classes of the binary cross-entropy, whose targets are the label for the task's own classes
and the sigmoid outputs of the network before the task for old ones. Exemplars are chosen by herding on
L2-normalised features, the same number of every class, K in total; a sample goes to the class with the
nearest mean of exemplars, means L2-normalised too. Stored: uint8 images.
`--icarl_loss mean` is the loss of the authors' code and of mammoth: a mean over all C classes, those to come
included, with target 0. Its steps are C times smaller at the same rate, hence their rates of 2.0 and 0.3.
Differs from the paper: the loss is a mean over samples, not a sum; herding does not normalise partial means
again; means are those of un-augmented images (the authors' code adds mirror images); evaluated inside a
task, the means of its classes are those of its data. With --buffer_size 0 it is the paper's LwF.MC, which
predicts by the outputs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarMethod, ExemplarOptions, nearest_mean
from engram.models.parts.teacher import frozen_copy
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ExemplarOptions):
    """These are the flags of iCaRL."""

    icarl_loss: str = option(
        "sum", "over the classes seen (the paper), or mean over all (its code)", choices=("sum", "mean")
    )


class ICaRL(ExemplarMethod):
    """Binary cross-entropy with distilled targets; prediction by exemplars."""

    options: Options
    scenarios = ("class-il",)
    chooses_classes = True
    off_switch = "it has another loss: binary cross-entropy"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.teacher = frozen_copy(net)
        self.means: Tensor | None = None

    def begin_task(self, task: Task) -> None:
        """The teacher is the network as the last task left it."""
        self.teacher.load_state_dict(self.net.state_dict())

    def loss(self, batch: Batch) -> Tensor:
        """Σ_c BCE(g_c(x), target_c): the label for new classes, the old network's output for old ones."""
        samples = self.union(batch)
        n_old, n_seen = self.buffer.n_groups[self.task.id : self.task.id + 2]
        logits = self.net(samples.x, samples.task_id)
        if self.options.icarl_loss == "sum":
            logits = logits[:, :n_seen]
        targets = F.one_hot(samples.y, logits.shape[1]).to(logits.dtype)
        if n_old:
            with torch.no_grad():
                targets[:, :n_old] = self.teacher(samples.x, samples.task_id)[:, :n_old].sigmoid()
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.sum(1).mean() if self.options.icarl_loss == "sum" else losses.mean()

    def after_step(self, batch: Batch) -> None:
        """The features have moved, and the means with them."""
        self.means = None

    def end_task(self, task: Task) -> None:
        """Herd the task's exemplars; cut those of old classes to the new size."""
        self.keep_herded(task)
        self.means = None

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """Negative squared distances to the means of exemplars."""
        if not self.options.buffer_size:
            return self.net(x, task_id)
        if self.means is None:
            self.means = self.stored_means()
        return nearest_mean(self.net.features(x).flatten(1), self.means)
