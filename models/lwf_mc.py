"""LwF for many classes (LwF-MC): a sigmoid per class; old classes learn what the old network says.

Source: Rebuffi et al. 2017, "iCaRL" (arXiv 1611.07725), baseline LwF.MC: the loss of algorithm 3 without
exemplars, Σ_{new c} H(1{y=c}, g_c) + Σ_{old c} H(q_c, g_c) with H(q, g) = −q log g − (1 − q) log(1 − g),
g the sigmoid of the logits, q that of the old network's on the same images; summed over classes,
averaged over samples. Classes that no task has had yet take no part.
Differs from the paper: with domains every class is new and old at once, and both sums count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts.teacher import Answers, Teacher, columns, old_outputs
from engram.utils.config.options import OptionSet


class LwFMC(Method):
    """Binary cross-entropy on the task's own classes, and distillation of all old ones."""

    needs_boundaries = True
    chooses_classes = True
    off_switch = "it has another loss: a sigmoid per class"

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.teacher = Teacher(net)
        self.answers = Answers(setup.benchmark, lambda x: self.old_logits(self.teacher.net, x).sigmoid())
        self.n_old = 0

    def enter(self, task: Task) -> None:
        """Old heads go on learning, from what is distilled."""
        super().enter(task)
        self.net.head.select(tuple(range(task.id + 1)))

    def begin_task(self, task: Task) -> None:
        """The old network is asked about new images."""
        self.answers.reset()

    def old_logits(self, net, x: Tensor) -> Tensor:
        """(N, old classes) logits of x."""
        features = net.features(x)
        return torch.cat(old_outputs(net.head, features, self.benchmark, self.n_old), 1)

    def loss(self, batch: Batch) -> Tensor:
        """(Σ_{new c} H(1{y=c}, g_c) + Σ_{old c} H(q_c, g_c)) / number of samples."""
        features, head = self.net.features(batch.x), self.net.head
        new_classes = columns(self.task)
        logits = head(features, batch.task_id)[:, new_classes]
        classes = torch.arange(new_classes.start, new_classes.stop, device=self.device)
        labels = (batch.y.view(-1, 1) == classes).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        if self.n_old:
            old = torch.cat(old_outputs(head, features, self.benchmark, self.n_old), 1)
            answers = self.answers.of(self.task, batch)
            loss = loss + F.binary_cross_entropy_with_logits(old, answers, reduction="sum")
        return loss / len(batch.y)

    def end_task(self, task: Task) -> None:
        """The network as it is now becomes the teacher."""
        self.n_old += 1
        self.teacher.update(self.net)
