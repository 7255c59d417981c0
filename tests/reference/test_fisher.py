"""The four Fisher estimates: closed forms, brute force, and what an unbiased estimate must average to."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models.parts import fisher, importance
from tests.conftest import tiny_method


def linear_method(scenario: str = "class-il", **flags):
    """A linear network with weights away from zero, its second task, and that task's images."""
    method, _ = tiny_method("ewc", scenario, **{"hidden_sizes": (), "protect_head": True, **flags})
    with torch.no_grad():
        for i, p in enumerate(method.net.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p).add(i).sin())
    task = method.setup.benchmark.tasks[1]
    return method, task, method.setup.benchmark.train(task)


def inputs(method, samples) -> Tensor:
    return method.setup.benchmark.augment.normalise(samples.x_raw).flatten(1)


def of(method, task, kind: str, n: int = 0) -> dict[str, Tensor]:
    return fisher.of_task(
        method.net, method.benchmark, method.quadratic.parameters, task, n, method.draws, kind,
        method.setup.train.batch_size,
    )  # fmt: skip


def test_all_labels_of_a_linear_softmax():
    """p_j (1 − p_j) x_i², averaged."""
    method, task, samples = linear_method()
    x = inputs(method, samples)
    p = method.net(x.view_as(samples.x_raw)).softmax(1)
    expected = (p * (1 - p)).T @ x.square() / len(x)
    torch.testing.assert_close(of(method, task, "all")["head.weight"], expected, rtol=1e-5, atol=1e-8)


def test_true_labels_of_a_linear_softmax():
    """(p_j − 1{y=j})² x_i², averaged."""
    method, task, samples = linear_method()
    x = inputs(method, samples)
    residual = method.net(x.view_as(samples.x_raw)).softmax(1) - F.one_hot(samples.y, 6)
    expected = residual.square().T @ x.square() / len(x)
    torch.testing.assert_close(of(method, task, "true")["head.weight"], expected, rtol=1e-5, atol=1e-8)


def test_sampled_labels_average_to_the_exact_fisher():
    """400 draws of the trace: within 4 standard errors of the exact one, false alarm 6e-5."""
    method, task, _ = linear_method()
    exact = sum(value.sum() for value in of(method, task, "all").values())
    drawn = torch.stack([sum(v.sum() for v in of(method, task, "sampled").values()) for _ in range(400)])
    error = drawn.std() / 400**0.5
    assert error > 0 and (drawn.mean() - exact).abs() < 4 * error, (drawn.mean(), exact, error)
    empirical = sum(value.sum() for value in of(method, task, "true").values())
    assert (empirical - exact).abs() > 8 * error, "the test can tell another estimate"


def test_sampled_labels_follow_the_networks_probabilities():
    """Counts of 20,000 labels of one image: χ² with 5 degrees of freedom below 25.7, false alarm 1e-4."""
    method, task, samples = linear_method()
    one = type(samples)(*(field[:1].expand(20_000, *field.shape[1:]) for field in samples))
    y = fisher.sample_labels(method.net, method.benchmark, task, one, torch.Generator().manual_seed(3))
    p = method.net(method.setup.benchmark.augment.normalise(samples.x_raw[:1])).softmax(1)[0]
    expected = 20_000 * p
    assert ((y.bincount(minlength=6) - expected).square() / expected).sum() < 25.7


def test_batched_is_the_mean_over_batches_of_the_squared_mean_gradient():
    method, task, samples = linear_method(batch_size=7)
    x, expected = inputs(method, samples), []
    for rows in torch.arange(len(x)).split(7):
        residual = method.net(x[rows].view(-1, 1, 6, 6)).softmax(1) - F.one_hot(samples.y[rows], 6)
        expected.append((residual.T @ x[rows] / len(rows)).square())
    found = of(method, task, "batched")["head.weight"]
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize("kind", ["true", "batched"])
def test_labels_of_a_tasks_own_head(kind, scenario):
    """The gradient is that of the task's training loss, whatever the heads."""
    method, task, samples = linear_method(scenario, hidden_sizes=(8,), batch_size=1)
    x = method.setup.benchmark.augment.normalise(samples.x_raw)
    parameters = method.quadratic.parameters
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(len(x)):
        part = slice(i, i + 1)
        loss = F.cross_entropy(method.logits(x[part], samples.task_id[part]), samples.y[part])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, g in zip(expected, gradients, strict=True):
            expected[name] += g.square() / len(x)
    for name, value in of(method, task, kind).items():
        torch.testing.assert_close(value, expected[name], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kind", fisher.KINDS)
def test_a_subset_is_drawn_and_nothing_is_left_behind(kind):
    method, task, _ = linear_method(hidden_sizes=(8,))
    method.net.train()
    before = method.draws.get_state()
    few, whole = of(method, task, kind, 9), of(method, task, kind)
    assert not torch.equal(method.draws.get_state(), before) and method.net.training
    assert not torch.equal(few["layers.1.weight"], whole["layers.1.weight"])
    assert all(p.grad is None for p in method.net.parameters())


@pytest.mark.parametrize("model", ["ewc", "imm_mode"])
@pytest.mark.parametrize("kind", fisher.KINDS)
def test_methods_use_the_kind_they_are_told(model, kind, monkeypatch):
    method, _ = tiny_method(model, fisher=kind, fisher_n=5)
    task = method.setup.benchmark.tasks[0]
    asked = []
    monkeypatch.setattr(fisher, "of_task", lambda *args: asked.append(args[4:]) or parameters(method))
    method.end_task(task)
    assert asked == [(5, method.draws, kind, 4)]


def parameters(method) -> dict[str, Tensor]:
    return {name: torch.ones_like(p) for name, p in importance.shared_parameters(method.net).items()}
