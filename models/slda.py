"""Deep SLDA: linear discriminant analysis with means of classes and one covariance, both running.

Source: Hayes & Kanan 2020, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis"
(arXiv 1909.01520): Λ = ((1 − ε) Σ + ε I)⁻¹ with ε = 10⁻⁴, and the score of class c is w_cᵀ z + b_c with
w_c = Λ μ_c and b_c = −½ μ_cᵀ Λ μ_c.
Differs from the paper: Σ is the covariance inside classes of all samples so far, (1/N) Σ_n (z_n − μ_{y_n})
(z_n − μ_{y_n})ᵀ with the means of today, from sums; there each sample enters with the mean of its class at
that time, so that Σ depends on the order of samples (and in the code begins as a matrix of ones).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.frozen import FrozenMethod
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of Deep SLDA."""

    slda_shrinkage: float = option(1e-4, "ε, the part of the identity in the covariance", gt=0, le=1)


class SLDA(FrozenMethod):
    """Gaussian classes that share a covariance."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.means = self.zeros(self.benchmark.n_classes, net.feature_dim)
        self.scatter = self.zeros(net.feature_dim, net.feature_dim)  # inside classes, not divided by N
        self.n_learned = torch.zeros_like(self.counts)  # (C,) samples that the means are made of
        self.weights, self.bias = torch.zeros_like(self.means), torch.zeros_like(self.counts)

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Merge the task's means and scatter with those of before (Chan et al. 1979), then invert."""
        features, n_new = features.to(self.dtype), self.one_hot(y).sum(0)
        means = torch.zeros_like(self.means).index_add_(0, y, features) / n_new.clamp_min(1).unsqueeze(1)
        centred = features - means[y]
        total = (self.n_learned + n_new).clamp_min(1)
        shift = (means - self.means) * (n_new > 0).unsqueeze(1)
        between = shift * (self.n_learned * n_new / total).unsqueeze(1)
        self.scatter += centred.T @ centred + shift.T @ between
        self.means += shift * (n_new / total).unsqueeze(1)
        self.n_learned += n_new
        self.weights = self.precision_times(self.means)
        self.bias = -(self.means * self.weights).sum(1) / 2

    def precision_times(self, means: Tensor) -> Tensor:
        """(C, D) Λ μ_c of each class."""
        epsilon = self.options.slda_shrinkage
        covariance = (1 - epsilon) * self.scatter / self.n_learned.sum()
        covariance.diagonal().add_(epsilon)
        return torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) w_cᵀ z + b_c of the features z."""
        return features @ self.weights.T + self.bias
