"""EASE: each task has an adapter, so a subspace of features; old classes get prototypes there, too.

Source: Zhou et al. 2024, "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental
Learning" (CVPR, arXiv 2403.12030) and the authors' code. Task t trains a fresh adapter set (s = 0.1, 64
units) beside the frozen encoder, through a cosine head over its own classes alone. f_j(x) is the class token
with adapters j ≤ t, and the prototype p_{c,j} the mean of f_j over class c, whose images are there in its own
task i only: so j ≤ i. For j > i, with n over the classes of the tasks from j on,
    p_{c,j} = Σ_n softmax_n(cos(p_{c,i}, p_{n,i})) p_{n,j}                      (completed)
    score_c(x) = cos(f_i(x), p_{c,i}) + (α / t) Σ_{j ≤ t, j ≠ i} cos(f_j(x), p_{c,j}),  t = 0: the first term
A test image takes t + 1 passes. The paper's run on CIFAR-100: --lr 0.025 --optim_mom 0.9 --optim_wd 0.0005
--lr_scheduler cosine --n_epochs 20 --batch_size 48.
Differs from the paper: adapters have no dropout (backbones/petl.py). All completed prototypes are computed
anew after each task, as in the authors' code (`recalc_sim`); the text completes those of the newest subspace.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.heads import CosineHead
from engram.backbones.petl import attach_adapter_sets
from engram.datasets.benchmark import Task
from engram.models.method import Setup
from engram.models.parts.task_adapters import AdapterPerTask
from engram.models.parts.vision_transformer import SMALL_VIT, require_vit
from engram.utils import seeding
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of EASE."""

    adapter_size: int = option(64, "units of an adapter", ge=1, le=4096)
    ease_alpha: float = option(0.1, "α, the weight of the subspaces of other tasks", ge=0)


class EASE(AdapterPerTask):
    """Subspaces of adapters and prototypes in all of them."""

    options: Options
    eager_step = ""
    off_switch = "it has adapters beside a frozen encoder and no trained classifier"
    quick_flags: ClassVar = {**SMALL_VIT, "adapter_size": 2}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        vit, tasks = require_vit(net, "ease"), setup.benchmark.tasks
        vit.freeze()
        attach_adapter_sets(vit, len(tasks), options.adapter_size, setup.generator("adapters"))
        with seeding.isolated(setup.seed, "init", 1):
            vit.head = CosineHead(vit.feature_dim, [task.classes for task in tasks], 1.0).to(setup.device)
        super().__init__(vit, options, setup)
        self.n_learned = 0  # tasks
        shape = (len(tasks), self.benchmark.n_classes, vit.feature_dim)
        self.prototypes = torch.zeros(shape, device=self.device)  # p_{c,j} at [j, c]; 0: not yet known

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        """The cosine head of a task starts with scale 1."""
        cast(nn.Parameter, self.net.head.scale).fill_(1.0)

    def end_task(self, task: Task) -> None:
        """p_{c,j} of the new classes in every subspace, and of the old ones in the new subspaces."""
        samples = self.benchmark.train(task)
        self.n_learned = task.id + 1
        for j in range(self.n_learned):
            features = self.evaluate(lambda x, j=j: self.subspace(j, x), samples.x_raw)
            for c in task.classes:
                self.prototypes[j, c] = features[samples.y == c].mean(0)
        for i in range(task.id):
            for j in range(i + 1, self.n_learned):
                self.complete(i, j)

    def complete(self, i: int, j: int) -> None:
        """p_{c,j} of the classes c of task i < j, by their likeness in subspace i to classes known in j."""
        masks = self.benchmark.class_masks
        old, known = masks[i], masks[j : self.n_learned].any(0)
        cosines = F.normalize(self.prototypes[i, old]) @ F.normalize(self.prototypes[i, known]).T
        self.prototypes[j, old] = cosines.softmax(1) @ self.prototypes[j, known]

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) scores; a class without prototype has the lowest of all and is never predicted."""
        masks = self.benchmark.class_masks[: self.n_learned]
        scores = torch.zeros(len(x), self.benchmark.n_classes, device=self.device)
        for j, own in enumerate(masks):
            cosines = F.normalize(self.subspace(j, x).float()) @ F.normalize(self.prototypes[j]).T
            scores += cosines * torch.where(own, 1.0, self.options.ease_alpha / max(1, self.n_learned - 1))
        return scores.masked_fill(~masks.any(0), torch.finfo(scores.dtype).min)
