"""Ridge regression from second moments: one solution, and the errors of many values of λ at once.

G = HᵀH (M, M) and Q = HᵀY (M, C) of inputs H (N, M) and targets Y (N, C); W_λ = (G + λI)⁻¹ Q.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def solve(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """(M, C) W_λ by Cholesky; by the eigenvectors of G where G + λI is singular in the type's precision."""
    regular = gram.clone()
    regular.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if failed:
        values, vectors = torch.linalg.eigh(gram)
        return vectors @ (inverted(values, strength).unsqueeze(1) * (vectors.T @ cross))
    return torch.cholesky_solve(cross, factor)


def held_out_errors(
    gram: Tensor, cross: Tensor, inputs: Tensor, targets: Tensor, strengths: Sequence[float]
) -> Tensor:
    """(len(strengths),) mean squared error of W_λ on held-out inputs (N, M) and targets (N, C), for each λ.

    With G = V S Vᵀ the predictions are (H V) (S + λ)⁻¹ (Vᵀ Q): one decomposition serves all λ.
    """
    values, vectors = torch.linalg.eigh(gram)
    left, right = inputs @ vectors, vectors.T @ cross
    errors = [
        (left @ (inverted(values, strength).unsqueeze(1) * right) - targets).square().mean()
        for strength in strengths
    ]
    return torch.stack(errors)


def inverted(values: Tensor, strength: float) -> Tensor:
    """(M,) 1 / (s + λ) of the eigenvalues of G, which rounding alone makes negative; 0 where both vanish."""
    smallest = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    shifted = values.clamp_min(0) + strength
    return torch.where(shifted > smallest, shifted.reciprocal(), 0.0)
