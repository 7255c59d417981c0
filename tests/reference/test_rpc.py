"""RPC: vertices that are equidistant, logits as the paper's inner products, a classifier that stays."""

import itertools

import pytest
import torch

from engram.backbones.heads import PolytopeHead, simplex
from tests.conftest import tiny_method
from tests.contract.test_methods import train


@pytest.mark.parametrize("n", [2, 3, 10, 100, 200])
def test_vertices_are_a_regular_simplex(n):
    """Length 1, sum 0, and every pair at the angle with cosine −1/(n−1): equidistant."""
    vertices = simplex(n).double()
    assert vertices.shape == (n, n - 1)
    torch.testing.assert_close(vertices.norm(dim=1), torch.ones(n, dtype=torch.float64), atol=1e-6, rtol=0)
    assert vertices.sum(0).abs().max() < 1e-5
    distances = [(a - b).norm().item() for a, b in itertools.islice(itertools.combinations(vertices, 2), 500)]
    assert distances == pytest.approx([(2 * n / (n - 1)) ** 0.5] * len(distances), abs=1e-6)
    gram = vertices @ vertices.T + torch.eye(n) * -1
    assert (gram.fill_diagonal_(-1 / (n - 1)) + 1 / (n - 1)).abs().max() < 1e-6


def test_logits_are_inner_products_with_the_vertices():
    head = PolytopeHead(5, 4)
    x = torch.randn(7, 5)
    for i, row in enumerate(head(x)):
        f = head.projection.weight @ x[i] + head.projection.bias
        assert row.tolist() == pytest.approx([(f @ v).item() for v in head.vertices], abs=1e-6)


def test_the_vertices_never_learn_and_are_saved():
    method, config = tiny_method("rpc", buffer_size=12, optim_wd=0.1, n_epochs=2)
    before = [p.clone() for p in method.net.head.projection.parameters()]
    train(method, config)
    assert torch.equal(method.net.head.vertices, simplex(6))
    assert all(not torch.equal(a, b) for a, b in zip(
        before, method.net.head.projection.parameters(), strict=True
    ))  # fmt: skip
    assert "head.vertices" in method.net.state_dict()
    assert not any("vertices" in name for name in method.trainable())


def test_the_memory_is_a_random_choice_of_every_class():
    """Equal shares; and over seeds each sample of a class is kept about equally often (alarm below 1e-4)."""
    counts = torch.zeros(90)
    for seed in range(60):
        method, _ = tiny_method("rpc", buffer_size=10, seed=seed)
        task = method.setup.benchmark.tasks[0]
        method.end_task(task)
        stored = method.buffer.stored()
        assert stored["y"].bincount(minlength=6).tolist() == [5, 5, 0, 0, 0, 0]
        counts[stored["index"]] += 1
    mine = counts[task.train_index]
    assert mine.sum() == 600 and (mine - 20).abs().max() < 4.5 * (60 / 3 * 2 / 3) ** 0.5
