"""ACIL: recursive least squares, which keeps the inverse of the second moments instead of the moments.

Source: Zhuang et al. 2022, "ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy
Protection" (NeurIPS), eq. 9 and 10, in the form for blocks of samples of any classes of G-ACIL (Zhuang et al.
2024, arXiv 2403.15706): with K = (I + X R Xᵀ)⁻¹, R ← R − R Xᵀ K X R and W ← W + R Xᵀ (Y − X W); R = I/γ at
first. X = ReLU(f(x)ᵀB) for a random B, 8192 wide, uniform in ±1/√D; γ = 0.1 (the authors' code). The paper's
theorem 1: W is that of joint ridge regression of strength γ, whatever the order of samples. In float64 on
every device, as in that code: a long recursion loses all digits of R in float32, and sooner in TF32.
Differs from the paper: the encoder is not trained on the first task.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.frozen import FrozenMethod
from engram.utils.config.options import OptionSet, option

BLOCK = 1024  # samples of one update: it inverts a matrix of their number


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of ACIL."""

    acil_size: int = option(8192, "width of the random expansion", ge=1)
    acil_gamma: float = option(0.1, "γ, the strength of the ridge", gt=0)


class ACIL(FrozenMethod):
    """A regression that is updated block by block and never solved anew."""

    options: Options
    quick_flags = {"acil_size": 64}  # noqa: RUF012

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        shape = (net.feature_dim, options.acil_size)
        uniform = torch.rand(shape, generator=setup.generator("projection"), dtype=torch.float64)
        self.expansion = ((2 * uniform - 1) / net.feature_dim**0.5).to(self.device, self.dtype)
        self.weights = self.zeros(options.acil_size, self.benchmark.n_classes)
        self.inverse = self.zeros(options.acil_size, options.acil_size)
        self.inverse.diagonal().fill_(1 / options.acil_gamma)

    @property
    def dtype(self) -> torch.dtype:
        """float64 on a GPU, too."""
        return torch.float64

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Update R and W with one block of samples after the other."""
        for rows, labels in zip(features.split(BLOCK), y.split(BLOCK), strict=True):
            x, targets = self.expand(rows.to(self.dtype)), self.one_hot(labels)
            projected = x @ self.inverse
            inner = projected @ x.T
            inner.diagonal().add_(1)
            self.inverse -= projected.T @ torch.linalg.solve(inner, projected)
            self.weights += self.inverse @ (x.T @ (targets - x @ self.weights))

    def expand(self, features: Tensor) -> Tensor:
        """(N, D) features → (N, M) ReLU(f(x)ᵀB)."""
        return torch.relu(features @ self.expansion)

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) XW of the expanded features."""
        return self.expand(features) @ self.weights
