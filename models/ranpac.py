"""RanPAC: ridge regression from a random, rectified projection of frozen features.

Source: McDonnell et al. 2023, "RanPAC: Random Projections and Pre-trained Models for Continual Learning"
(arXiv 2307.02251), Algorithm 1, phase 2: h(x) = ReLU(f(x)ᵀW), W ∈ R^{D×M} with N(0, 1) entries drawn once,
M = 10,000; the rest is `ridge` (models/ridge.py, its λ too). Phase 1, adapting the encoder to the first task,
is `--first_task adapter` (the paper's for CIFAR-100) or `ssf` (for ImageNet-R): models/parts/first_task.py.
Differs from the paper: phase 1 is off by default ("no phase 1").
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.first_task import FirstTaskAdaptation, FirstTaskOptions
from engram.models.ridge import Options as RidgeOptions
from engram.models.ridge import Ridge
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(RidgeOptions, FirstTaskOptions):
    """These are the flags of RanPAC."""

    rp_size: int = option(10000, "M, the width of the random projection", ge=1)


class RanPAC(FirstTaskAdaptation, Ridge):
    """Ridge regression on a projection that is drawn once, ReLU(f(x)ᵀW)."""

    options: Options
    quick_flags = {"rp_size": 64}  # noqa: RUF012

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        shape = (net.feature_dim, options.rp_size)
        projection = torch.randn(shape, generator=setup.generator("projection"))
        self.projection = projection.to(self.device, self.dtype)

    def width(self, feature_dim: int) -> int:
        """M, which does not depend on the encoder."""
        return self.options.rp_size

    def expand(self, features: Tensor) -> Tensor:
        """(N, D) features → (N, M) ReLU(f(x)ᵀW)."""
        return torch.relu(features @ self.projection)
