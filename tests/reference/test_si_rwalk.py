"""SI and RWalk against an analytic path integral and naive transcriptions of their papers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.models.method import Method
from engram.models.parts.path import PathIntegral
from engram.models.parts.quadratic import Quadratic
from tests.conftest import tiny_method
from tests.reference.test_ewc_mas import enter, learn, values

STRENGTH = {"si": "si_c", "rwalk": "rwalk_lambda"}


def test_path_integral_of_gradient_descent_on_a_quadratic():
    """L = ½ Σ h θ², θ_k = r^k θ_0 with r = 1 − ηh: ω = η h² θ_0² (1 − r^2n) / (1 − r²), → L(0) − L(n)."""
    h, start = torch.tensor([1.0, 3.0, 0.2]).double(), torch.tensor([1.0, -2.0, 5.0]).double()
    for rate, n in ((0.1, 7), (0.001, 1000)):
        theta = nn.Parameter(start.clone())
        path, optimizer = PathIntegral({"theta": theta}), torch.optim.SGD([theta], lr=rate)
        for _ in range(n):
            optimizer.zero_grad()
            (h * theta.square()).sum().div(2).backward()
            path.note()
            optimizer.step()
            path.add()
        r = 1 - rate * h
        expected = rate * h**2 * start**2 * (1 - r ** (2 * n)) / (1 - r**2)
        torch.testing.assert_close(path.value["theta"], expected, rtol=1e-9, atol=0)
    loss_drop = h * (start**2 - theta.detach() ** 2) / 2
    torch.testing.assert_close(path.value["theta"], loss_drop, rtol=2e-3, atol=0)  # small steps: an integral


def test_the_penaltys_gradient_equals_autograd():
    generator = torch.Generator().manual_seed(0)
    theta = {
        n: nn.Parameter(torch.randn(s, generator=generator).double())
        for n, s in {"a": (3, 2), "b": 4}.items()
    }
    theta["frozen"] = nn.Parameter(torch.ones(2).double(), requires_grad=False)
    quadratic = Quadratic(theta)
    quadratic.set({n: torch.rand(p.shape, generator=generator).double() for n, p in theta.items()})
    for p in theta.values():
        p.data.add_(0.3)
    trained = [theta["a"], theta["b"]]
    for p in trained:
        p.grad = torch.ones_like(p)
    quadratic.add_gradients(0.7)
    expected = torch.autograd.grad(0.7 * quadratic.value(), trained)
    for p, g in zip(trained, expected, strict=True):
        torch.testing.assert_close(p.grad, 1 + g, rtol=1e-12, atol=0)
    assert theta["frozen"].grad is None


class Naive:
    """A copy of a method's network trained by hand, one parameter dict at a time."""

    def __init__(self, method: Method):
        self.method, self.net = method, copy.deepcopy(method.net)
        self.names = list(method.quadratic.parameters)
        self.omega: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def now(self) -> dict[str, Tensor]:
        known = dict(self.net.named_parameters())
        return {n: known[n].detach().clone() for n in self.names}

    def step(self, batch, strength: float, lr: float) -> dict[str, Tensor]:
        """One SGD step on CE + strength Σ Ω (θ − θ*)²; returns the gradient of CE alone."""
        known = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        logits = self.net(batch.x, batch.task_id)
        if self.method.allowed_classes is not None:
            logits = logits.masked_fill(~self.method.allowed_classes[batch.task_id], -torch.inf)
        loss = F.cross_entropy(logits, batch.y)
        task = dict(
            zip(known, torch.autograd.grad(loss, list(known.values()), retain_graph=True), strict=True)
        )
        for n in self.omega:
            loss = loss + strength * (self.omega[n] * (known[n] - self.anchor[n]) ** 2).sum()
        total = torch.autograd.grad(loss, list(known.values()))
        with torch.no_grad():
            for p, g in zip(known.values(), total, strict=True):
                p -= lr * g
        return {n: task[n] for n in self.names}


def naive_si(method: Method, config, n_tasks: int, c: float, xi: float) -> Naive:
    """Zenke et al., eq. 3-5, written out."""
    naive = Naive(method)
    for i in range(n_tasks):
        _, batches = enter(method, config, i)
        naive.net.head.select(method.setup.benchmark.tasks[i].parts)
        start, omega = naive.now(), {n: 0 for n in naive.names}
        for batch in batches:
            before = naive.now()
            gradient = naive.step(batch, c, config.train.lr)
            after = naive.now()
            omega = {n: omega[n] - gradient[n] * (after[n] - before[n]) for n in naive.names}
        end = naive.now()
        for n in naive.names:
            gained = omega[n].clamp(min=0) / ((end[n] - start[n]) ** 2 + xi)
            naive.omega[n] = naive.omega.get(n, 0) + gained
        naive.anchor = end
    return naive


def naive_rwalk(method: Method, config, n_tasks: int, strength: float, options) -> Naive:
    """Chaudhry et al., sections 4.1-4.3, written out."""
    naive = Naive(method)
    fisher, scores_before = None, None
    for i in range(n_tasks):
        _, batches = enter(method, config, i)
        naive.net.head.select(method.setup.benchmark.tasks[i].parts)
        scores = {n: 0 for n in naive.names}
        for first in range(0, len(batches), options.rwalk_every):
            stretch = batches[first : first + options.rwalk_every]
            start, squares, drop = naive.now(), {n: 0 for n in naive.names}, {n: 0 for n in naive.names}
            for batch in stretch:
                before = naive.now()
                gradient = naive.step(batch, strength, config.train.lr)
                after = naive.now()
                squares = {n: squares[n] + gradient[n] ** 2 for n in naive.names}
                drop = {n: drop[n] - gradient[n] * (after[n] - before[n]) for n in naive.names}
            new = {n: s / len(stretch) for n, s in squares.items()}
            fisher = fisher or new
            for n in naive.names:
                kl = 0.5 * fisher[n] * (naive.now()[n] - start[n]) ** 2
                scores[n] = scores[n] + drop[n].clamp(min=0) / (kl + options.rwalk_epsilon)
            a = options.rwalk_alpha
            fisher = {n: a * new[n] + (1 - a) * fisher[n] for n in naive.names}
        if scores_before:
            scores = {n: 0.5 * (scores_before[n] + scores[n]) for n in naive.names}
        scores_before = scores
        most = max(f.max() for f in fisher.values()), max(s.max() for s in scores.values())
        naive.omega = {n: fisher[n] / most[0] + scores[n] / most[1] for n in naive.names}
        naive.anchor = naive.now()
    return naive


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize("model", STRENGTH)
def test_equals_a_naive_transcription(model, scenario):
    flags = {"rwalk_every": 4} if model == "rwalk" else {"si_xi": 0.05}
    method, config = tiny_method(model, scenario, **flags, **{STRENGTH[model]: 0.8})
    other, _ = tiny_method(model, scenario, **flags, **{STRENGTH[model]: 0.8})
    learn(method, config, 3)
    if model == "si":
        naive = naive_si(other, config, 3, 0.8, 0.05)
    else:
        naive = naive_rwalk(other, config, 3, 0.8, other.options)
    for name, value in values(method).items():
        expected = naive.net.get_parameter(name)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-6, msg=name)
    assert method.quadratic.importance.keys() == naive.omega.keys()
    for name, value in naive.omega.items():
        assert value.max() > 0
        torch.testing.assert_close(method.quadratic.importance[name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_rwalks_importance_lies_between_zero_and_two():
    method, config = tiny_method("rwalk")
    learn(method, config, 2)
    both = torch.cat([v.flatten() for v in method.quadratic.importance.values()])
    assert both.min() >= 0 and 1 <= both.max() <= 2


@pytest.mark.parametrize("model", STRENGTH)
def test_the_penalty_pulls_while_training(model):
    """Without the pull the second task moves the important weights further."""
    moved = []
    for strength in (1e-9, 1.0):
        method, config = tiny_method(model, **{STRENGTH[model]: strength})
        learn(method, config, 1)
        anchor, weight = dict(method.quadratic.anchor), dict(method.quadratic.importance)
        _, batches = enter(method, config, 1)
        for batch in batches:
            method.observe(batch)
        moved.append(sum((weight[n] * (v - anchor[n]) ** 2).sum().item() for n, v in values(method).items()))
    assert moved[1] < 0.8 * moved[0], moved


ALL = {
    "ewc": {}, "mas": {}, "si": {}, "rwalk": {"rwalk_every": 3}, "imm_mean": {}, "imm_mode": {"fisher_n": 5}
}  # fmt: skip


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize("model", ALL)
def test_the_penalty_is_above_zero_after_a_reload(model, scenario):
    """By parameter name, so that it holds in a network that was built anew."""
    method, config = tiny_method(model, scenario, **ALL[model])
    learn(method, config, 1)
    _, batches = enter(method, config, 1)
    method.observe(batches[0])
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = tiny_method(model, scenario, **ALL[model])
    assert not restored.quadratic
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.quadratic.value() > 0
    assert torch.equal(restored.quadratic.value(), method.quadratic.value())


@pytest.mark.parametrize("model", ["ewc", "mas", "si", "rwalk"])
def test_protect_head_says_whether_a_shared_head_is_held(model):
    cases = [("class-il", True, True), ("class-il", False, False)]
    cases += [("domain-il", False, False), ("task-il", True, False)]
    for scenario, flag, held in cases:
        method, config = tiny_method(model, scenario, protect_head=flag)
        learn(method, config, 1)
        assert any(n.startswith("head.") for n in method.quadratic.importance) == held, (scenario, flag)
        assert any(n.startswith("layers.") for n in method.quadratic.importance)
