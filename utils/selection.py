"""Selection: which samples of a finished task deserve a place in the memory."""

import torch
from torch import Tensor

# Shares of the ranking that the cautious policies leave out at either end.
SKIPPED = 0.1
POLICIES = ("min", "max", "middle", "0.1min", "0.9max", "randomized")


def pick(ranking: Tensor, k: int, policy: str, weights: Tensor, generator: torch.Generator) -> Tensor:
    """`k` entries of a ranking (n,), or all when it has no more.

    ranking: sample positions, lowest memorization first. min, max, middle: the first, last, central
    k. 0.1min: the first k after the lowest tenth; 0.9max: the last k before the highest tenth.
    randomized: without the highest tenth, drawn with probability proportional to `weights` (n,).
    """
    n = len(ranking)
    if k >= n or not k:
        return ranking[:k]
    low, high = min(int(SKIPPED * n), n - k), max(n - int(SKIPPED * n), k)
    if policy == "randomized":
        shares = weights[:high].double().clamp_min(1e-12).cpu()
        drawn = torch.multinomial(shares, k, replacement=False, generator=generator)
        return ranking[drawn.sort().values.to(ranking.device)]
    start = {"min": 0, "max": n - k, "middle": (n - k) // 2, "0.1min": low, "0.9max": high - k}[policy]
    return ranking[start : start + k]


def quotas(n: int, n_classes: int) -> list[int]:
    """`n` places shared equally among classes; the first classes take the rest."""
    return [n // n_classes + (i < n % n_classes) for i in range(n_classes)]


def class_balanced(
    order: Tensor, y: Tensor, n: int, policy: str, weights: Tensor, generator: torch.Generator
) -> Tensor:
    """At most `n` positions, the same number for every class as far as it has candidates.

    order: (m,) candidate positions in ascending memorization. y: (N,) labels by position. weights:
    (N,) by position, for `randomized`.
    """
    if not n or not len(order):
        return order[:0]
    classes = y[order].unique()
    chosen = []
    for label, quota in zip(classes, quotas(n, len(classes)), strict=True):
        ranking = order[y[order] == label]
        chosen.append(pick(ranking, quota, policy, weights[ranking], generator))
    return torch.cat(chosen)
