"""Projection of a gradient onto the half-spaces in which past tasks' losses do not grow."""

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import nnls
from torch import Tensor


def solve_dual(gram: np.ndarray, dots: np.ndarray, margin: float, eps: float) -> np.ndarray:
    """The v that minimises ½ vᵀ(GGᵀ + eps·I)v + (Gg)ᵀv subject to v ≥ margin.

    gram: (T, T) GGᵀ. dots: (T,) Gg. With v = u + margin and P = LLᵀ this is the non-negative
    least-squares problem min ‖Lᵀu − b‖², b = −L⁻¹(Gg + P·margin), u ≥ 0.
    """
    P = (gram + gram.T) / 2 + eps * np.eye(len(dots))
    L = np.linalg.cholesky(P)
    b = solve_triangular(L, -(dots + margin * P.sum(1)), lower=True)
    u, _ = nnls(L.T, b, maxiter=max(100, 30 * len(dots)))
    return u + margin


def project(g: Tensor, past: Tensor, margin: float, eps: float) -> Tensor | None:
    """The vector g + Gᵀv nearest to g (up to margin and eps) with ⟨g_k, g + Gᵀv⟩ ≥ 0 for all k.

    g: (P,). past: G, (T, P). None when no constraint is violated. That flag is read from the device,
    as is the (T, T) Gram matrix when there is something to solve; the solution goes back.
    """
    dots = past @ g
    if not (dots < 0).any():
        return None
    gram = (past @ past.T).double().cpu().numpy()
    if not np.isfinite(gram).all():  # a diverged network: the trainer reports its loss
        return None
    v = solve_dual(gram, dots.double().cpu().numpy(), margin, eps)
    return g + past.T @ torch.from_numpy(v).to(past)
