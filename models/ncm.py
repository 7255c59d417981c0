"""NCM (SimpleCIL): the class whose mean feature has the largest cosine to the image's feature.

Source: Zhou et al. 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
Adaptivity are All You Need" (arXiv 2303.07338), SimpleCIL: w_c = (1/N_c) Σ_{y_n = c} f(x_n) of un-augmented
images; ŷ = argmax_c cos(f(x), w_c). Nothing is trained; the order of tasks has no effect.
Differs from the paper: the mean of a class that comes back in a later task goes on over all its samples.
"""

import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.frozen import FrozenMethod
from engram.utils.config.options import OptionSet


class NCM(FrozenMethod):
    """Means of features, compared by their angles."""

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.sums = self.zeros(self.benchmark.n_classes, self.feature_dim)

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Add each feature to the sum of its class."""
        self.sums.index_add_(0, y, features.to(self.dtype))

    def scores(self, features: Tensor) -> Tensor:
        """cos(f(x), w_c); a sum has the direction of its mean."""
        return F.normalize(features) @ F.normalize(self.sums).T
