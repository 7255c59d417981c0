"""Supervised Contrastive Replay (SCR): contrastive features on stream and memory, nearest class mean.

Source: Mai et al. 2021, "Supervised Contrastive Replay" (arXiv 2103.13885), eqs. 1-3 and Algorithm 1: two
views of each sample of stream and memory; with z the normalised output of a two-layer projection, the mean
over samples i of −1/|P(i)| Σ_p log exp(z_i z_p/τ) / Σ_{a≠i} exp(z_i z_a/τ), P(i) the others of its class
(Khosla et al. 2020, arXiv 2004.11362, eq. 2). Reservoir memory. A sample goes to the class with the nearest
mean of L2-normalised features of the memory; the classifier of the network is not used. Task-free. Stored:
uint8 images.
Differs from the paper: both views are augmented as the stream (there one is not augmented and one is
cropped, mirrored, coloured); without augmentation they are the same image twice. Each sample is offered to
the memory once. A batch that comes before any memory is trained on.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.exemplars import class_means, nearest_mean
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils import seeding
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of SCR."""

    minibatch_size: int = option(100, "samples replayed per step; 0 takes --batch_size", ge=0)
    temperature: float = option(0.07, "τ of the contrastive loss", gt=0)
    projection_size: int = option(128, "length of z", ge=1)


class SCR(RehearsalMethod):
    """Contrastive loss in place of a classifier."""

    options: Options
    joins_replay = True  # each sample is seen twice
    scenarios = ("class-il", "domain-il")
    chooses_classes = True
    off_switch = "it has another loss: contrastive"
    eager_step = "class means are forgotten on the host after every step"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        size = net.feature_dim
        with seeding.isolated(setup.seed, "init", 1):
            layers = nn.Linear(size, size), nn.ReLU(), nn.Linear(size, options.projection_size)
        self.projection = nn.Sequential(*layers).to(self.device)
        self.means: Tensor | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The network's parameters and the projection's."""
        projection = {f"projection.{name}": p for name, p in self.projection.named_parameters()}
        return super().trainable() | projection

    def loss(self, batch: Batch) -> Tensor:
        """Supervised contrastive loss over two views of stream and memory."""
        x, raw, y = batch.x, batch.x_raw, batch.y
        if len(self.buffer):
            drawn = self.buffer.sample(self.n_replayed)
            x = torch.cat((x, self.augment(drawn["x"])))
            raw, y = torch.cat((raw, drawn["x"])), torch.cat((y, drawn["y"]))
        views = torch.cat((x, self.augment(raw)))
        z = self.projection(self.net.features(views).flatten(1))
        return supervised_contrastive(z, y.repeat(2), self.options.temperature)

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the reservoir; the features have moved, and the means with them."""
        self.remember(batch)
        self.means = None

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """Negative squared distances to the class means of the memory."""
        if self.means is None:
            self.means = self.memory_means()
        return nearest_mean(self.net.features(x).flatten(1), self.means)

    def memory_means(self) -> Tensor:
        """(C, D), NaN for a class of which nothing is stored."""
        n_classes, stored = self.benchmark.n_classes, self.buffer.stored()
        if not len(self.buffer):
            return torch.full((n_classes, self.net.feature_dim), torch.nan, device=self.device)
        return class_means(self.features(stored["x"]), stored["y"], n_classes)


def supervised_contrastive(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Khosla's L_sup,out of embeddings (N, D) with labels (N,), each of which occurs at least twice."""
    z = F.normalize(z, dim=1)
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    log_p = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1)
    positive = (y.unsqueeze(1) == y) & ~itself
    return -(log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()
