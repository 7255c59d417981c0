"""Adaptation to the first task: the encoder learns there, by gradients, and never again.

Source: Zhou et al. 2023 (APER, arXiv 2303.07338), section 4.2, and McDonnell et al. 2023 (RanPAC, arXiv
2307.02251), phase 1: small modules beside the frozen weights, or all weights, learn by cross-entropy through
a cosine head over the classes of the first task, whose scale is learned from 1 on, as in the authors' code.
The head is then thrown away. How long and at which rate the run's own flags say (--n_epochs, --lr, ...).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones import tuning
from engram.backbones.backbone import Backbone
from engram.backbones.heads import CosineHead
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts.frozen import FrozenMethod
from engram.utils import seeding
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

KINDS = ("none", *(kind for kind in tuning.KINDS if kind != "head"))


@dataclass(frozen=True)
class FirstTaskOptions(OptionSet):
    """How the encoder adapts to the first task."""

    first_task: str = option(
        "none", "what learns in the first task and is frozen then: none, or as in --tune", choices=KINDS
    )
    first_task_size: int = option(0, "units of an adapter, rank, prompts, as in --tune_size", ge=0, le=4096)


class FirstTaskAdaptation(FrozenMethod):
    """Goes before another class of frozen features; that one learns from the adapted features."""

    options: FirstTaskOptions
    classifier: CosineHead | None = None  # over the classes of the first task; None: nothing adapts

    def __init__(self, net: Backbone, options: FirstTaskOptions, setup: Setup) -> None:
        super().__init__(net, options, setup)
        kind, size, first = options.first_task, options.first_task_size, self.benchmark.tasks[0]
        if kind == "none":
            return
        if not all(p.requires_grad for p in net.parameters()):
            raise UserError(f"--first_task {kind} chooses itself what learns: leave --tune out")
        tuning.tune(net, kind, size, setup.generator("first task"))
        with seeding.isolated(setup.seed, "first task"):
            self.classifier = CosineHead(net.feature_dim, [first.classes], scale=1.0).to(self.device)

    @classmethod
    def keeps_encoder(cls, options: OptionSet) -> bool:
        """The encoder stays where nothing adapts."""
        return getattr(options, "first_task", "none") == "none"

    def takes_steps_in(self, task: Task) -> bool:
        """In the first task, where something adapts."""
        return self.classifier is not None and task.id == 0

    def trainable(self) -> dict[str, nn.Parameter]:
        """In the first task what adapts and the cosine head; later the head, which no step moves."""
        learning = super().trainable()
        if self.classifier is None:
            return learning
        below = {name: p for name, p in learning.items() if not name.startswith("head.")}
        if self.task is not None and self.task.id:
            return {name: p for name, p in learning.items() if name not in below}
        return below | {f"classifier.{name}": p for name, p in self.classifier.named_parameters()}

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Learn in the first task; a step in another teaches nothing."""
        adapts = self.task is not None and self.takes_steps_in(self.task)
        return Method.observe(self, batch) if adapts else super().observe(batch)

    def loss(self, batch: Batch) -> Tensor:
        """CE(σ cos(f(x), w), y) over the first task's classes."""
        assert self.classifier is not None
        cosines = self.classifier(self.net.features(batch.x).flatten(1))
        return F.cross_entropy(cosines, batch.y - self.benchmark.tasks[0].classes[0])
