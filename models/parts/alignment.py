"""Classifier alignment: the head is trained again on features drawn from a Gaussian of each class seen.

Source: Zhang et al. 2023, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
Pre-trained Model" (arXiv 2303.05118), section 3.2 and the authors' code. Heads that were trained apart, each
on its own task, become comparable without a stored image. A slowly changing encoder keeps old Gaussians
nearly right; they are never updated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engram.backbones.heads import Head, TaskHeads
from engram.models.method import Setup
from engram.utils import seeding
from engram.utils.errors import UserError
from engram.utils.training.optimizers import SGD

MOMENTUM = 0.9


class ClassGaussians(nn.Module):
    """Mean and covariance of each class's features, as buffers: (C,) counts, (C, D) means, (K, D, D) factors.

    A factor is the lower triangular L of Σ + εI = L Lᵀ. ε: `ridge`. K grows with the classes: it is one more
    than the largest label described, since 200 factors of 768 features take 450 MiB.
    """

    counts: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, n_classes: int, width: int, ridge: float = 1e-4) -> None:
        super().__init__()
        self.ridge = ridge
        self.register_buffer("counts", torch.zeros(n_classes, dtype=torch.long))
        self.register_buffer("means", torch.zeros(n_classes, width))
        self.register_buffer("factors", torch.zeros(0, width, width))

    def fit(self, features: Tensor, y: Tensor) -> None:
        """Describe the classes that occur among features (N, D) with labels (N,); sums are in float64.

        A class of one sample has the covariance εI.
        """
        identity = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
        labels = y.unique().tolist()
        new = self.factors.new_zeros(max(0, max(labels) + 1 - len(self.factors)), *self.factors.shape[1:])
        self.factors = torch.cat([self.factors, new])
        for label in labels:
            rows = features[y == label].double()
            deviations = rows - rows.mean(0)
            covariance = deviations.T @ deviations / max(len(rows) - 1, 1)
            factor = torch.linalg.cholesky_ex(covariance + self.ridge * identity).L  # NaN stays NaN
            self.counts[label], self.means[label], self.factors[label] = len(rows), rows.mean(0), factor

    def sample(self, n: int, draws: torch.Generator, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`n` features z ~ N(s_c μ_c, Σ_c + εI) of each class c described, (K · n, D), and their labels.

        scales: (C,) the s_c; None: 1.
        """
        described = self.counts.nonzero()[:, 0]
        means = self.means if scales is None else scales.unsqueeze(1) * self.means
        noise = torch.randn(len(described), n, means.shape[1], generator=draws, device=means.device)
        samples = means[described].unsqueeze(1) + noise @ self.factors[described].mT
        return samples.flatten(0, 1), described.repeat_interleave(n)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Make room for as many factors as were saved; then PyTorch copies them."""
        saved = state.get(f"{prefix}factors", self.factors)
        self.factors = self.factors.new_empty(saved.shape)
        super()._load_from_state_dict(state, prefix, *others)


@dataclass(frozen=True)
class Schedule:
    """How a head is aligned: passes, each over new draws; draws of a class in it; batches; SGD's settings."""

    n_epochs: int
    n_samples: int
    batch_size: int
    lr: float
    weight_decay: float


def align(
    head: Head,
    draw: Callable[[], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    draws: torch.Generator,
) -> None:
    """Train what learns of a head on features that `draw` gives anew for each pass, the rate along a cosine.

    loss: (N, C) logits, (N,) labels → scalar. The draws are those of the order.
    """
    parameters = [p for p in head.parameters() if p.requires_grad]
    settings = {"momentum": MOMENTUM, "weight_decay": schedule.weight_decay, "fused": True}
    optimizer = SGD(parameters, lr=schedule.lr, **settings)
    for epoch in range(schedule.n_epochs):
        optimizer.param_groups[0]["lr"] = (
            schedule.lr * (1 + math.cos(math.pi * epoch / schedule.n_epochs)) / 2
        )
        features, y = draw()
        order = torch.randperm(len(y), generator=draws, device=y.device)
        for rows in order.split(schedule.batch_size):
            optimizer.zero_grad()
            loss(head(features[rows]), y[rows]).backward()
            optimizer.step()


def one_head_per_task(head: Head, feature_dim: int, setup: Setup, deviation: float | None = None) -> Head:
    """A linear layer for each task's classes in place of a shared one; logits stay side by side, (N, C).

    deviation: of the truncated normal that weights are drawn from, biases being 0; None: PyTorch's own.
    """
    tasks = [task.classes for task in setup.benchmark.tasks]
    if [c for classes in tasks for c in classes] != list(range(setup.benchmark.n_classes)):
        raise UserError(
            f"--dataset {setup.benchmark.name}: a head for each task needs tasks with classes of their own"
        )
    with seeding.isolated(setup.seed, "init", 1):
        heads = head if isinstance(head, TaskHeads) else TaskHeads(feature_dim, tasks)
        for layer in heads.heads if deviation else ():
            nn.init.trunc_normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
    return heads.to(setup.device)
