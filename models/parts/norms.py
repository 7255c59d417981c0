"""Norms of the outputs, whose gradient is MAS's importance.

(N, C) logits → quantities (N, K) and their weights (N, K).
"""

import torch
from torch import Tensor


def squared_norm(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The squared Euclidean norm ‖f(x)‖²₂, one quantity per sample."""
    norm = logits.square().sum(1, keepdim=True)
    return norm, torch.ones_like(norm)


def euclidean_norm(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The Euclidean norm ‖f(x)‖₂; where it is zero, so is its gradient."""
    norm = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
    return norm, torch.ones_like(norm)


def absolute_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The absolute sum Σ_c |f_c(x)|, one quantity per sample."""
    norm = logits.abs().sum(1, keepdim=True)
    return norm, torch.ones_like(norm)


def each_output(logits: Tensor) -> tuple[Tensor, Tensor]:
    """All f_c(x), each weighing 1/C."""
    return logits, torch.full_like(logits, 1 / logits.shape[1])


NORMS = {"l2sq": squared_norm, "l2": euclidean_norm, "l1": absolute_sum, "vector": each_output}
