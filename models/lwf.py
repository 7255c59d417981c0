"""Learning without Forgetting (LwF): on new images, keep saying what the old network said.

Source: Li & Hoiem 2017, "Learning without Forgetting" (arXiv 1606.09282), eq. 1-3 and figure 3: the network,
the outputs of old tasks and those of the new one learn together.
The loss is CE + λ Σ_{old tasks} KD, KD = −mean Σ_c q_c log p_c with the old network's q and the new one's
p at temperature T on the images of the current task; no factor T², no other normalisation.
`--lwf_distill head`: a softmax over each old task's classes (the paper). joint: one over all old classes,
counted once per old task, so that λ weighs a task as with heads (FACIL, PyCIL and mammoth count it once).
seen: as joint, but the new network's softmax is over the new classes too, of which the old one's probability
is 0, and KD is divided by its number of classes C; with λ = T² it is the loss of van de Ven & Tolias 2019 up
to its scale, whose code takes the mean over classes too (per head: λ = T²/C). With domains C are all classes.
`--lwf_warmup`: epochs of plain SGD on the new task's outputs alone before the rest may move.
Differs from the paper: no weight decay unless asked for; the old network answers in eval mode, on the
images as augmented for the step; no warm-up unless asked for, and with domains nothing new to warm up.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.backbones.heads import SharedHead
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts.inference import evaluating
from engram.models.parts.teacher import Answers, Teacher, distillation, old_outputs
from engram.utils.compat import foreach_add_
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of LwF."""

    lwf_lambda: float = option(1.0, "strength λ of the distillation; 0 turns it off", ge=0)
    lwf_temperature: float = option(2.0, "temperature T of both softmaxes", gt=0)
    lwf_distill: str | None = option(
        None, "one softmax per old task, one over all, or one over all and the new task's classes "
        "(default: head with --multi_head or --train_classes task, otherwise joint)",
        choices=("head", "joint", "seen"),
    )  # fmt: skip
    lwf_warmup: int = option(0, "epochs in which only the new task's outputs learn", ge=0)


class LwF(Method):
    """Cross-entropy plus distillation from the network that the last task left."""

    options: Options
    needs_boundaries = True
    data_parallel = True
    eager_step = ""
    off_switch: ClassVar = {"lwf_lambda": 0}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        apart = setup.benchmark.scenario == "task-il" or setup.benchmark.train_classes == "task"
        by_default = "head" if apart else "joint"
        self.distill = options.lwf_distill or by_default
        self.teacher = Teacher(net)
        self.answers = Answers(setup.benchmark, lambda x: self.asked(self.teacher.net, x))
        self.n_old = 0

    def enter(self, task: Task) -> None:
        """Old heads go on learning, from what is distilled."""
        super().enter(task)
        if self.options.lwf_lambda:
            self.net.head.select(tuple(range(task.id + 1)))

    def begin_task(self, task: Task) -> None:
        """Warm up the new outputs."""
        self.answers.reset()
        if self.n_old and self.options.lwf_lambda:
            self.warm_up(task, self.options.lwf_warmup)

    def asked(self, net, x: Tensor) -> Tensor:
        """(N, K) logits under each softmax that is distilled, side by side."""
        return torch.cat(self.teachers(net.head, net.features(x)), 1)

    def teachers(self, head, features: Tensor) -> list[Tensor]:
        """Logits (N, C) of features (N, D) under each softmax that is distilled."""
        return self.softmaxes(head, features, self.n_old)

    def students(self, features: Tensor) -> list[Tensor]:
        """The same of the network that learns."""
        return self.softmaxes(self.net.head, features, self.n_old + (self.distill == "seen"))

    def softmaxes(self, head, features: Tensor, n_tasks: int) -> list[Tensor]:
        """Logits (N, C) of features (N, D) under each softmax over classes of the first tasks."""
        outputs = old_outputs(head, features, self.benchmark, n_tasks)
        return outputs if self.distill == "head" or len(outputs) == 1 else [torch.cat(outputs, 1)]

    def loss(self, batch: Batch) -> Tensor:
        """CE + λ Σ_{old tasks} KD."""
        if not (self.n_old and self.options.lwf_lambda):
            return super().loss(batch)
        features = self.net.features(batch.x)
        logits = self.mask_classes(self.net.head(features, batch.task_id), batch.task_id)
        distilled = self.distilled(self.students(features), self.answers.of(self.task, batch))
        return (
            F.cross_entropy(logits, batch.y)
            + self.options.lwf_lambda * distilled
        )  # fmt: skip

    def distilled(self, students: list[Tensor], answers: Tensor) -> Tensor:
        """Scalar Σ over old tasks of the distillation loss."""
        widths = [student.shape[1] for student in students]
        teachers = answers.split(widths, 1) if self.distill == "head" else [answers]
        pairs = zip(students, teachers, strict=True)
        losses = [distillation(s, t, self.options.lwf_temperature) for s, t in pairs]
        shared = widths[0] if self.distill == "seen" else 1
        return sum(losses) * (self.n_old / len(losses) / shared)

    def end_task(self, task: Task) -> None:
        """The network as it is now becomes the teacher."""
        self.n_old += 1
        self.teacher.update(self.net)

    def warm_up(self, task: Task, n_epochs: int) -> None:
        """Plain SGD at --lr on the outputs of the task's classes alone, everything else as in eval mode."""
        head, train = self.net.head, self.setup.train
        new = self.benchmark.class_masks[task.id]
        shared = isinstance(head, SharedHead)
        if shared and new.all():
            return  # no output is new
        parameters = list((head if shared else head.heads[task.id]).parameters())
        with evaluating(self.net):
            for epoch in range(n_epochs):
                for batch in self.benchmark.batches(task, epoch, train.batch_size):
                    with torch.no_grad():
                        features = self.net.features(batch.x)
                    logits = self.mask_classes(head(features, batch.task_id), batch.task_id)
                    gradients = torch.autograd.grad(F.cross_entropy(logits, batch.y), parameters)
                    if shared:  # the rows of old classes stay as they are
                        gradients = [g * new.view(-1, *[1] * (g.dim() - 1)) for g in gradients]
                    with torch.no_grad():
                        foreach_add_(parameters, gradients, alpha=-train.lr)
