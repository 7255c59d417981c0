"""k nearest neighbours: every training feature is kept, and the most similar ones vote.

Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv
1805.01978), section 3.4: of the k samples of largest cosine s_i each votes for its class with weight
exp(s_i / τ), τ = 0.07; k = 20 as in DINO (there 200). The reference for what features alone tell.
Differs from the paper: samples arrive task by task; an answer is among the classes seen so far.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.frozen import FrozenMethod
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of k nearest neighbours."""

    knn_k: int = option(20, "k, the neighbours that vote", ge=1)
    knn_temperature: float = option(0.07, "τ of the votes' weights exp(s / τ)", gt=0)


class KNN(FrozenMethod):
    """All features of the past, in float32."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.stored = torch.zeros(0, net.feature_dim, device=self.device)
        self.labels = torch.zeros(0, dtype=torch.long, device=self.device)

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Keep every feature, of unit length."""
        self.stored = torch.cat([self.stored, F.normalize(features)])
        self.labels = torch.cat([self.labels, y])

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) sum of exp((s_i − 1) / τ) over neighbours of each class; the shift avoids overflow."""
        votes = self.zeros(len(features), self.benchmark.n_classes)
        if not len(self.labels):
            return votes
        similarities = F.normalize(features).to(self.stored.dtype) @ self.stored.T
        nearest, neighbours = similarities.topk(min(self.options.knn_k, len(self.labels)))
        weights = ((nearest - 1) / self.options.knn_temperature).exp().to(self.dtype)
        return votes.scatter_add_(1, self.labels[neighbours], weights)
