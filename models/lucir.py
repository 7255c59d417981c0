"""LUCIR: cosine classifier, features that keep their direction, a margin between old and new classes.

Source: Hou et al. 2019, "Learning a Unified Classifier Incrementally via Rebalancing" (CVPR), eqs. 3-9. On
the union of the task's data and the exemplars: cross-entropy of η cos(f, θ_c), η learned; less-forget
λ (1 − cos(f*, f)) to the features f* of the last network, λ = λ_base sqrt(n_old / n_new) as in the authors'
code (the text has the inverse ratio, but says that λ grows as new classes become fewer); and for each
exemplar max(0, m − cos(θ, f) + cos(θ_k, f)) with the K new classes it is most like. Old classes'
embeddings are fixed; new ones start at the mean of their normalised features, with the old ones' mean
length. Exemplars are herded as in iCaRL. Stored: uint8 images.
Differs from the paper: η stays at its start or above. Left alone it ends below 0 in short trainings, and
features are then learned upside down, against the other two losses; on seq-mnist the bound acts in single
early steps. Features come from the backbone as they are (there without
the last ReLU); no fine-tuning on a balanced set at the end of a task, which the paper has as an option.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.backbones.heads import CosineHead
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarMethod, ExemplarOptions, class_means
from engram.models.parts.teacher import frozen_copy
from engram.utils import seeding
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ExemplarOptions):
    """These are the flags of LUCIR."""

    lamda_base: float = option(5.0, "strength λ_base of the less-forget loss", ge=0)
    lamda_mr: float = option(1.0, "weight of the margin ranking loss", ge=0)
    k_mr: int = option(2, "new classes that an exemplar is kept apart from", ge=1)
    mr_margin: float = option(0.5, "margin between cosines", ge=0)
    initial_scale: float = option(1.0, "factor η of the cosines at the start, and its least value", gt=0)


class LUCIR(ExemplarMethod):
    """Three losses on a cosine head."""

    options: Options
    scenarios = ("class-il",)
    chooses_classes = True
    off_switch = "it has another head: cosines"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        classes = [task.classes for task in setup.benchmark.tasks]
        with seeding.isolated(setup.seed, "init", 1):
            net.head = CosineHead(net.feature_dim, classes, options.initial_scale).to(setup.device)
        super().__init__(net, options, setup)
        self.teacher = frozen_copy(net)

    def enter(self, task: Task) -> None:
        """Embeddings of other tasks' classes are fixed."""
        super().enter(task)
        self.net.head.select(task.parts)

    def begin_task(self, task: Task) -> None:
        """Keep the last network; imprint the new classes."""
        self.teacher.load_state_dict(self.net.state_dict())
        if not task.id:
            return
        samples, head = self.benchmark.train(task), self.net.head
        features = self.features(samples.x_raw)
        means = class_means(features, samples.y, self.benchmark.n_classes)[list(task.classes)]
        old = torch.cat(list(head.embeddings[: task.id]))
        with torch.no_grad():
            head.embeddings[task.id].copy_(means * old.norm(dim=1).mean())

    def loss(self, batch: Batch) -> Tensor:
        """CE + λ (1 − cos(f*, f)) + margin ranking; the last two from the second task on."""
        samples, options = self.union(batch), self.options
        n_old, n_seen = self.buffer.n_groups[self.task.id : self.task.id + 2]
        features = self.net.features(samples.x).flatten(1)
        cosines = self.net.head.cosines(features)[:, :n_seen]
        cross_entropy = F.cross_entropy(self.net.head.scale * cosines, samples.y)
        if not n_old:
            return cross_entropy
        with torch.no_grad():
            before = self.teacher.features(samples.x).flatten(1)
        strength = options.lamda_base * (n_old / (n_seen - n_old)) ** 0.5
        return (
            cross_entropy
            + strength * (1 - F.cosine_similarity(features, before)).mean()
            + options.lamda_mr * margin_ranking(cosines, samples.y, n_old, options.k_mr, options.mr_margin)
        )

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Keep η at its start or above."""
        self.net.head.scale.clamp_(min=self.options.initial_scale)

    def end_task(self, task: Task) -> None:
        """Give the task's share of the memory to herded exemplars."""
        self.keep_herded(task)


def margin_ranking(cosines: Tensor, y: Tensor, n_old: int, k: int, margin: float) -> Tensor:
    """Mean of max(0, margin − cos_y + cos_k) over the samples of old classes and their k nearest new ones.

    cosines: (N, C), the first n_old columns old classes; 0 without a sample of an old class.
    """
    k = min(k, cosines.shape[1] - n_old)
    true, nearest = cosines.gather(1, y.unsqueeze(1)), cosines[:, n_old:].topk(k, dim=1).values
    losses, old = (margin - true + nearest).clamp_min(0), (y < n_old).unsqueeze(1)
    return (losses * old).sum() / (k * old.sum()).clamp_min(1)
