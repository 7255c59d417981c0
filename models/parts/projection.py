"""Projection of a gradient onto the half-spaces in which past tasks' losses do not grow."""

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import nnls
from torch import Tensor

from engram.utils.transfer import send

# Of ‖g_k‖²: keeps P positive definite where past gradients are equal and of norm 1e6 or more. It exceeds eps
# from a norm of 316 on; 1e-13 would do, but moves GEM's runs by rounding.
FLOOR = 1e-8
BLOCK = 2**20  # columns of G that are in float64 at a time: 8 MB per past task


def solve_dual(gram: np.ndarray, dots: np.ndarray, margin: float, eps: float) -> np.ndarray:
    """The v that minimises ½ vᵀPv + (Gg)ᵀv, P = GGᵀ + eps·I + FLOOR·diag(GGᵀ), subject to v ≥ margin.

    gram: (T, T) GGᵀ. dots: (T,) Gg. Both in float64. With v = u + margin and P = LLᵀ this is the non-negative
    least-squares problem min ‖Lᵀu − b‖², b = −L⁻¹(Gg + P·margin), u ≥ 0. Every past gradient is divided by
    its norm first, so that P has at least ones on its diagonal and stays positive definite at every scale.
    """
    norms = np.sqrt(np.diag(gram))
    norms[norms == 0] = 1  # a gradient of zero constrains nothing
    P = (gram + gram.T) / 2 / np.outer(norms, norms) + np.diag(eps / norms**2 + FLOOR)
    L = np.linalg.cholesky(P)
    # in these coordinates v_k is v_k · norm_k, and so is the margin
    b = solve_triangular(L, -(dots / norms + P @ (margin * norms)), lower=True)
    u, _ = nnls(L.T, b, maxiter=max(100, 30 * len(dots)))
    return u / norms + margin


def project(g: Tensor, past: Tensor, margin: float, eps: float) -> Tensor | None:
    """The vector g + Gᵀv nearest to g (up to margin and eps) with ⟨g_k, g + Gᵀv⟩ ≥ 0 for all k.

    g: (P,). past: G, (T, P). None when no constraint is violated. All that the decision and the solution
    need is read from the device at once, (T, T + 2) numbers; the solution goes back.
    """
    # in float64: rounded to float32, the Gram matrix of near-parallel gradients is not positive definite
    gram_and_dots = products(past, past, g.unsqueeze(0))
    numbers = torch.cat([*gram_and_dots, (past @ g).double().unsqueeze(1)], 1).cpu().numpy()
    gram, dots, dots_as_trained = numbers[:, :-2], numbers[:, -2], numbers[:, -1]
    if not (dots_as_trained < 0).any():
        return None
    if not (np.isfinite(gram).all() and np.isfinite(dots).all()):  # a diverged network: the trainer says so
        return None
    v = solve_dual(gram, dots, margin, eps)
    return g + past.T @ send(torch.from_numpy(v), past.device, past.dtype)


def products(a: Tensor, *others: Tensor) -> list[Tensor]:
    """ABᵀ (m, n) in float64 of A (m, P) and each of the others B (n, P); a block of A is converted once."""
    sums: list[list[Tensor]] = [[] for _ in others]
    for x, *blocks in zip(*(t.split(BLOCK, dim=1) for t in (a, *others)), strict=True):
        wide = x.double()
        for b, y, kept in zip(others, blocks, sums, strict=True):
            kept.append(wide @ (wide if b is a else y.double()).T)
    return [torch.stack(kept).sum(0) for kept in sums]
