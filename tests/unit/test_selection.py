"""Policies on rankings small enough to write down, and the learning-order proxy against the paper's list."""

import numpy as np
import pytest
import torch

from models.parts.learning import NEVER, LearningOrder
from utils.selection import POLICIES, class_balanced, pick, quotas


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("min", [0, 1, 2, 3]),
        ("max", [16, 17, 18, 19]),
        ("middle", [8, 9, 10, 11]),
        ("0.1min", [2, 3, 4, 5]),
        ("0.9max", [14, 15, 16, 17]),
    ],
)
def test_policies_on_twenty(policy, expected):
    ranking = torch.arange(20) * 10
    found = pick(ranking, 4, policy, torch.ones(20), generator())
    assert found.tolist() == [10 * i for i in expected]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("k", [0, 1, 9, 10, 11])
def test_exactly_k_distinct_or_all(policy, k):
    found = pick(torch.arange(10), k, policy, torch.rand(10), generator())
    assert len(found) == len(set(found.tolist())) == min(k, 10)


def test_randomized_follows_the_weights_and_spares_the_last_tenth():
    """First draw ∝ weight; 4,000 draws, each share within 4.5 standard errors (false alarm < 1e-4)."""
    weights = torch.arange(1.0, 11.0)
    counts = np.zeros(10)
    source = generator()
    for _ in range(4000):
        counts[pick(torch.arange(10), 1, "randomized", weights, source)] += 1
    assert counts[9] == 0
    p = weights[:9].numpy() / weights[:9].numpy().sum()
    z = (counts[:9] / 4000 - p) / np.sqrt(p * (1 - p) / 4000)
    assert np.abs(z).max() < 4.5


def test_quotas_and_balance():
    assert quotas(7, 3) == [3, 2, 2]
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    order = torch.tensor([8, 0, 3, 1, 4, 6, 2, 5, 7])
    found = class_balanced(order, y, 5, "min", torch.ones(9), generator())
    assert found.tolist() == [0, 1, 3, 4, 8]
    assert class_balanced(order, y, 0, "min", torch.ones(9), generator()).tolist() == []


def test_learning_order_equals_the_papers_list():
    """Algorithm 1 as the paper writes it: append when right, remove when wrong."""
    rng = np.random.default_rng(0)
    proxy, listed = LearningOrder(30, torch.device("cpu")), []
    for _ in range(200):
        index, correct = rng.permutation(30)[:5], rng.random(5) < 0.6
        proxy.update(torch.from_numpy(index), torch.from_numpy(correct))
        for i, right in zip(index.tolist(), correct.tolist(), strict=True):
            if right and i not in listed:
                listed.append(i)
            if not right and i in listed:
                listed.remove(i)
    order = torch.argsort(proxy.when, stable=True)
    assert order[proxy.when[order] < NEVER].tolist() == listed
    proxy.reset()
    assert (proxy.when == NEVER).all()
