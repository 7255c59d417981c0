"""Coresets: bilevel choices of a few samples on which a classifier learns what all of them teach.

The inner model is softmax regression with a ridge: x (n, D) features, y (n,) labels below c, θ (D, c),
sample weights w (n,): g(θ) = Σ w_i CE_i(θ) + ρ/2 ‖θ‖². All derivatives are written out: the gradient of
CE_i is x_i (p_i − e_y)ᵀ, and its Hessian times V is x_i (p_i ∘ (u_i − ⟨p_i, u_i⟩))ᵀ with u_i = Vᵀ x_i.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarReplay
from engram.utils.transfer import send

RIDGE = 1e-3
INNER, NEUMANN, SMOOTHING = 5, 3, 1e-3  # BCSR: steps on θ for each on w; terms of the series; of top-k
SUBSET_STEPS = 100  # PBCS: steps of a model on its subset


def residuals(x: Tensor, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """(n, c) probabilities p, and p − e_y."""
    p = (x @ theta).softmax(1)
    return p, p - F.one_hot(y, theta.shape[1])


def descend(x: Tensor, y: Tensor, w: Tensor, theta: Tensor, steps: int, lr: float) -> Tensor:
    """θ after steps of gradient descent on g."""
    for _ in range(steps):
        _, off = residuals(x, y, theta)
        theta = theta - lr * (x.T @ (w.unsqueeze(1) * off) + RIDGE * theta)
    return theta


def hypergradient(x: Tensor, y: Tensor, w: Tensor, theta: Tensor, lr: float, terms: int) -> Tensor:
    """(n,) derivative by w of the mean CE over all samples at the inner solution θ*(w), taken at θ.

    −⟨∇CE_i, v⟩ with v = lr Σ_{q ≤ terms} (I − lr ∇²g)^q ∇f, a Neumann series for (∇²g)⁻¹ ∇f.
    """
    p, off = residuals(x, y, theta)
    v = x.T @ off / len(y)
    total = v
    for _ in range(terms):
        u = x @ v
        curved = x.T @ (w.unsqueeze(1) * p * (u - (p * u).sum(1, keepdim=True))) + RIDGE * v
        v = v - lr * curved
        total = total + v
    return -(off * (x @ (lr * total))).sum(1)


def onto_simplex(v: Tensor, total: float = 1.0) -> Tensor:
    """The point nearest to v (n,) with w ≥ 0 and Σ w = total (Duchi et al. 2008)."""
    u = v.sort(descending=True).values
    excess = (u.cumsum(0) - total) / torch.arange(1, len(v) + 1, device=v.device)
    return (v - excess[(u > excess).sum() - 1]).clamp_min(0)


def onto_capped_simplex(v: Tensor, total: float) -> Tensor:
    """The point nearest to v (n,) with 0 ≤ s ≤ 1 and Σ s = total ≤ n, by bisection."""
    low, high = v.min() - 1, v.max()
    for _ in range(60):
        middle = (low + high) / 2
        more = (v - middle).clamp(0, 1).sum() > total
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return (v - high).clamp(0, 1)


def bilevel_weights(
    x: Tensor, y: Tensor, k: int, steps: int, lr: float, weight_lr: float, beta: float, noise: torch.Generator
) -> Tensor:
    """(n,) weights on the simplex with about k that matter: BCSR, Hao et al. 2023, Algorithm 1.

    Each step: descent on g, then w along the hypergradient less β times the gradient of the smoothed sum
    of the k largest weights, then back onto the simplex. Steps on w are of size weight_lr / n, and the
    smoothing noise is SMOOTHING / n, so that they mean the same for any n.
    """
    n = len(y)
    w = torch.full((n,), 1 / n, dtype=x.dtype, device=x.device)
    theta = torch.zeros(x.shape[1], int(y.max()) + 1, dtype=x.dtype, device=x.device)
    for _ in range(steps):
        theta = descend(x, y, w, theta, INNER, lr)
        slope = hypergradient(x, y, w, theta, lr, NEUMANN)
        z = send(torch.randn(n, generator=noise, dtype=x.dtype), x.device)
        largest = (w + SMOOTHING * z / n).topk(min(k, n)).indices
        slope = slope - slope.mean()  # the simplex undoes a shift; so a step stays small
        slope.index_add_(0, largest, slope.new_full((len(largest),), -beta))
        w = onto_simplex(w - weight_lr / n * slope)
    return w


def inclusion_probabilities(
    x: Tensor, y: Tensor, k: int, steps: int, lr: float, eta: float, chance: torch.Generator
) -> Tensor:
    """(n,) chances s of being kept, Σ s = k: PBCS, Zhou et al. 2022, Algorithm 1.

    Each step: a subset m ~ Bernoulli(s), a model trained on it, and s against the policy gradient of the
    model's loss on all samples.
    """
    n, classes = len(y), int(y.max()) + 1
    s = torch.full((n,), min(1.0, k / n), dtype=x.dtype, device=x.device)
    usual, spread = None, 0.0
    for _ in range(steps):
        m = send(torch.rand(n, generator=chance, dtype=x.dtype), x.device) < s
        weights = m.to(x.dtype) / m.sum().clamp_min(1)
        theta = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device)
        theta = descend(x[m], y[m], weights[m], theta, SUBSET_STEPS, lr)
        loss = F.cross_entropy(x @ theta, y)
        better = loss - (loss if usual is None else usual)
        spread = 0.9 * spread + 0.1 * better.abs()
        advantage = (better / spread.clamp_min(1e-12)).clamp(-3, 3)
        s = onto_capped_simplex(s - eta * advantage * (m.to(x.dtype) - s), min(k, n))
        usual = loss if usual is None else 0.9 * usual + 0.1 * loss
    return s


class CoresetReplay(ExemplarReplay):
    """ER on exemplars whose choice is a bilevel problem: subclasses weigh the candidates.

    Options have `coreset_candidates`, the random samples of each class to choose from.
    """

    def __init__(self, net: Backbone, options: Any, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def weigh(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        """(n,) weight of each candidate, k of which will be kept.

        x: (n, D + 1) L2-normalised features and a constant. y: (n,) labels, counted within the task.
        """
        raise NotImplementedError(f"{type(self).__name__} must define weigh(x, y, k)")

    def end_task(self, task: Task) -> None:
        """Weigh candidates of all the task's classes together; each class keeps those of most weight.

        Candidates are random samples of each class, at least as many as it may keep.
        """
        memory, samples = self.buffer, self.task_samples(task)
        if not memory.size:
            return
        quotas, chosen = memory.quotas(task.id + 1)[memory.n_groups[task.id] :], []
        for label, quota in zip(task.classes, quotas, strict=True):
            members = torch.nonzero(samples["y"] == label).view(-1)
            n_candidates = max(quota, self.options.coreset_candidates)
            order = torch.randperm(len(members), generator=self.draws)[:n_candidates]
            chosen.append(members[order.to(members.device)])
        rows = torch.cat(chosen)
        score = torch.full((len(samples["y"]),), -1.0, device=self.device)  # others come after candidates
        if sum(quotas):
            x = F.normalize(self.features(samples["x"][rows]), dim=1)
            x = torch.cat((x, torch.ones_like(x[:, :1])), 1)
            y = torch.repeat_interleave(torch.tensor([len(members) for members in chosen])).to(self.device)
            score[rows] = self.weigh(x, y, sum(quotas))
        self.keep_highest(task, score)
