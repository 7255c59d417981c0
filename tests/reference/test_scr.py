"""SCR: the contrastive loss against loops, what is contrasted, the nearest mean of the memory."""

import math

import pytest
import torch

from engram.models.parts.exemplars import class_means, nearest_mean
from engram.models.scr import supervised_contrastive
from tests.conftest import tiny_method
from tests.contract.test_methods import steps, train


def by_loops(z: list[torch.Tensor], y: list[int], temperature: float) -> float:
    """Equation 2 of Khosla et al., term by term."""
    z = [v.double() / v.double().norm() for v in z]
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        below = sum(math.exp((z[i] @ z[a]).item() / temperature) for a in others)
        positives = [p for p in others if y[p] == y[i]]
        terms = [math.log(math.exp((z[i] @ z[p]).item() / temperature) / below) for p in positives]
        total -= sum(terms) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 5])
def test_the_loss_equals_a_loop(temperature):
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(12, 4, generator=generator)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3, 3, 2, 1])
    found = supervised_contrastive(z, y, temperature)
    assert found.item() == pytest.approx(by_loops(list(z), y.tolist(), temperature), rel=1e-4)


def test_a_step_contrasts_two_views_of_stream_and_memory():
    method, config = tiny_method("scr", buffer_size=30, minibatch_size=9)
    train(method, config, tasks=1)
    views, features = [], method.net.features
    method.net.features = lambda x: views.append(x) or features(x)
    method.task = method.setup.benchmark.tasks[1]
    batch = next(method.setup.benchmark.batches(method.task, 0, 4))
    loss = method.loss(batch)
    (seen,) = views
    assert len(seen) == 2 * (4 + 9) and torch.equal(seen[:4], batch.x)
    assert not torch.equal(seen[:13], seen[13:]), "each view is augmented by itself"
    stored, normalise = method.buffer.stored(), method.setup.benchmark.augment.normalise
    assert seen.shape[1:] == normalise(stored["x"]).shape[1:]
    loss.backward()
    assert all(p.grad is None for p in method.net.head.parameters()), "no classifier"
    assert all(p.grad is not None for n, p in method.trainable().items() if not n.startswith("head"))


def test_prediction_is_the_nearest_mean_of_what_is_stored_now():
    method, config = tiny_method("scr", buffer_size=30)
    train(method, config, tasks=2)
    steps(method, config)
    method.net.eval()
    benchmark, stored = method.setup.benchmark, method.buffer.stored()
    x = benchmark.augment.normalise(benchmark.test(3).x_raw)
    with torch.no_grad():
        means = class_means(method.net.features(benchmark.augment.normalise(stored["x"])), stored["y"], 6)
        expected = nearest_mean(method.net.features(x), means)
        torch.testing.assert_close(method.predict(x, None), expected)
    assert set(stored["y"].tolist()) == {0, 1, 2, 3}


def test_the_projection_learns_and_is_saved():
    method, config = tiny_method("scr", projection_size=5)
    before = [p.clone() for p in method.projection.parameters()]
    train(method, config, tasks=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, method.projection.parameters(), strict=True))
    assert method.projection[2].weight.shape == (5, 8)
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} == set(method.state_dict()["projection"])
