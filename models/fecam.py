"""FeCAM: the class of smallest Mahalanobis distance, each with a covariance of its own.

Source: Goswami et al. 2023, "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free
Continual Learning" (NeurIPS, arXiv 2309.14062): z̃ = z^λ where λ = 0.5 (Tukey's ladder, for features that are
not negative, as a ReLU's; eq. 8); Σ_s = Σ + γ₁ V₁ I + γ₂ V₂ (1 − I), V₁ and V₂ the means of Σ's diagonal and
of the rest (eq. 6); Σ̂ = the correlation matrix of Σ_s (eq. 7); the distance is (z̄ − μ̄)ᵀ Σ̂⁻¹ (z̄ − μ̄) of z̃ and
the class's mean, both of unit length. γ₁ = γ₂ = 1 (the authors' code for ResNet-18). Where Σ̂ has no inverse
(γ₁ = 0 and few samples), its pseudo-inverse. `--first_task adapter` adapts a ViT to the first task
(models/parts/first_task.py), as PILOT's code does before.
Differs from the paper: Σ and μ are of the transformed features in the first task as well; a class that comes
back goes on with all its samples (there the mean of two covariances).
Differs from the authors' code: μ is the mean of transformed features (there the transform of the features'
mean); Σ is shrunk once (there twice, for ResNet-18). Its scripts for a ViT make means and covariances of
features of unit length and leave the means as long as they are, which --tukey 1 --shrink_rest 0 does not.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.first_task import FirstTaskAdaptation, FirstTaskOptions
from engram.utils.config.options import option

BLOCKS = 8  # of a triangular matrix: 9/16 of the products of a square one


@dataclass(frozen=True)
class Options(FirstTaskOptions):
    """These are the flags of FeCAM."""

    tukey: float = option(0.5, "λ, the power of features; 1: none, for features of any sign (a ViT's)", gt=0)
    shrink_diagonal: float = option(1.0, "γ₁ of the shrinkage", ge=0)
    shrink_rest: float = option(1.0, "γ₂ of the shrinkage (the authors' code for a ViT: 0)", ge=0)


class FeCAM(FirstTaskAdaptation):
    """Gaussian classes, each of its own shape."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        n_classes, width = self.benchmark.n_classes, net.feature_dim
        self.sums, self.squares = self.zeros(n_classes, width), self.zeros(n_classes, width, width)
        self.factors = self.zeros(n_classes, width, width)  # FᵀF = Σ̂⁻¹

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Add the moments of each class that the task has, and factorise its correlations."""
        features = self.transform(features.to(self.dtype))
        for label in y.unique().tolist():
            rows = features[y == label]
            self.sums[label] += rows.sum(0)
            self.squares[label] += rows.T @ rows
            self.factors[label] = inverse_factor(self.correlations(label))

    def transform(self, features: Tensor) -> Tensor:
        """Tukey's ladder of powers; of a negative feature the power of its size, with its sign."""
        if self.options.tukey == 1:
            return features
        return features.sign() * features.abs() ** self.options.tukey

    def correlations(self, label: int) -> Tensor:
        """(D, D) Σ̂: the shrunk covariance of a class, scaled to a unit diagonal."""
        n = self.counts[label]
        covariance = self.squares[label] - torch.outer(self.sums[label], self.sums[label]) / n
        covariance /= (n - 1).clamp_min(1)
        diagonal, size = covariance.diagonal(), len(covariance)
        off_diagonal = (covariance.sum() - diagonal.sum()) / max(size * (size - 1), 1)
        rest = self.options.shrink_rest * off_diagonal
        shrunk = covariance + rest
        shrunk.diagonal().add_(self.options.shrink_diagonal * diagonal.mean() - rest)
        variances = shrunk.diagonal()
        rounding = 10 * n.sqrt() * torch.finfo(self.dtype).eps * self.squares[label].diagonal() / n
        # a feature without variance, as all have in a class of one sample, is uncorrelated
        scale = torch.where(variances > rounding, variances.rsqrt(), 0)
        return (shrunk * torch.outer(scale, scale)).fill_diagonal_(1)

    def scores(self, features: Tensor) -> Tensor:
        """Minus the distance to each class that has samples."""
        directions, means = F.normalize(self.transform(features)), F.normalize(self.sums)
        scores = self.zeros(len(features), len(means))
        for label in torch.nonzero(self.counts)[:, 0].tolist():
            scores[:, label] = -squared_length(directions - means[label], self.factors[label])
        return scores


def inverse_factor(matrix: Tensor) -> Tensor:
    """(D, D) lower triangular F with FᵀF = Σ̂⁻¹: L⁻¹ of Σ̂ = L Lᵀ; of the pseudo-inverse where Σ̂ is singular.

    Directions of negative eigenvalues, in which no distance is defined, are left out like those of 0.
    """
    zero = torch.finfo(matrix.dtype).eps ** 0.5  # Σ̂'s diagonal is 1; its rounding grows with mean² / variance
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if not failed and lower.diagonal().min() ** 2 > zero:
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    values, vectors = torch.linalg.eigh(matrix)
    root = torch.where(values > zero, values.rsqrt(), 0).unsqueeze(1) * vectors.T
    return torch.linalg.qr(root.flip(1), mode="r").R.flip(0, 1)  # root = QF, Q orthogonal


def squared_length(rows: Tensor, factor: Tensor) -> Tensor:
    """(N,) |F r|² of rows r (N, D) and a lower triangular F (D, D); of F's zeros most are left out."""
    total, width = rows.new_zeros(len(rows)), -(-len(factor) // BLOCKS)
    for start in range(0, len(factor), width):
        end = start + width
        total += (rows[:, :end] @ factor[start:end, :end].T).square().sum(1)
    return total
