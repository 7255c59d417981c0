"""EWC and MAS against their loss written out: what is added to it, when, and for which parameters."""

import io

import pytest
import torch
from torch import Tensor

from engram.models.method import Method
from engram.models.parts import importance
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method

STRENGTH = {"ewc": "e_lambda", "mas": "mas_lambda"}


def enter(method: Method, config, i: int):
    """Make task `i` the current one, as the trainer does."""
    task = method.setup.benchmark.tasks[i]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    return task, list(method.setup.benchmark.batches(task, 0, config.train.batch_size))


def learn(method: Method, config, n_tasks: int) -> None:
    for i in range(n_tasks):
        task, batches = enter(method, config, i)
        for batch in batches:
            method.observe(batch)
        method.end_task(task)


def values(method: Method) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in method.net.named_parameters()}


def learn_and_note(method: Method, config, n_tasks: int) -> list[tuple[dict, dict]]:
    """Importance by one backward per sample, and parameters, at the end of every task."""
    noted = []
    for i in range(n_tasks):
        task, batches = enter(method, config, i)
        for batch in batches:
            method.observe(batch)
        noted.append((by_hand(method, task), values(method)))
        method.end_task(task)
    return noted


def by_hand(method: Method, task) -> dict[str, Tensor]:
    """EWC's Fisher or MAS's importance over all of a task's samples, straight from the definition."""
    samples = method.setup.benchmark.train(task)
    x = method.setup.benchmark.augment.normalise(samples.x_raw)
    parameters = {n: p for n, p in method.net.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for i in range(len(x)):
        logits = method.logits(x[i : i + 1], samples.task_id[i : i + 1])[0]
        logits = logits[logits.isfinite()]
        if type(method).__name__ == "MAS":
            terms = [(1.0, logits.square().sum())]
        else:
            log_p = logits.log_softmax(0)
            terms = [(log_p[c].exp().item(), log_p[c]) for c in range(len(log_p))]
        for weight, term in terms:
            gradients = torch.autograd.grad(term, list(parameters.values()), retain_graph=True)
            for name, g in zip(total, gradients, strict=True):
                total[name] += weight * (g.square() if len(terms) > 1 else g.abs()) / len(x)
    return total


def penalty(method: Method) -> Tensor:
    """λ Σ Ω (θ − θ*)², whose gradient a step adds."""
    return method.strength * method.quadratic.value()


def expected_penalty(noted: list, theta: dict, model: str, flags: dict) -> Tensor:
    """The penalty of the two papers, written out over the tasks seen."""
    (o1, _), (o2, a2) = noted
    shared = [n for n in o1 if n in o2]
    if model == "mas":
        return sum((1.5 * (o1[n] + o2[n]) * (theta[n] - a2[n]) ** 2).sum() for n in shared)
    if flags["ewc_mode"] == "separate":
        pairs = [(o[n], a[n], theta[n]) for o, a in noted for n in shared]
        return sum((1.5 / 2 * o * (t - a) ** 2).sum() for o, a, t in pairs)
    g = flags["gamma"]
    return sum((1.5 / 2 * g * (g * o1[n] + o2[n]) * (theta[n] - a2[n]) ** 2).sum() for n in shared)


FORMS = [
    ("ewc", {"ewc_mode": "separate", "fisher_n": 0}),
    ("ewc", {"ewc_mode": "online", "gamma": 1.0, "fisher_n": 0}),
    ("ewc", {"ewc_mode": "online", "gamma": 0.6, "fisher_n": 0}),
    ("mas", {}),
]


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize(("model", "flags"), FORMS)
def test_the_penalty_is_the_papers(model, flags, scenario):
    method, config = tiny_method(model, scenario, **flags, **{STRENGTH[model]: 1.5})
    noted = learn_and_note(method, config, 2)
    enter(method, config, 2)
    theta = method.net.state_dict(keep_vars=True)
    with torch.no_grad():
        for p in method.net.parameters():
            p.add_(0.1 * torch.sin(torch.arange(p.numel())).view_as(p))
    found, expected = penalty(method), expected_penalty(noted, theta, model, flags)
    assert found > 1e-4
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-7)
    names = list(method.quadratic.importance)
    for name in names:
        theta[name].grad = torch.zeros_like(theta[name])
    method.edit_gradients(None)
    for name, gradient in zip(names, torch.autograd.grad(expected, [theta[n] for n in names]), strict=True):
        torch.testing.assert_close(theta[name].grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", STRENGTH)
def test_heads_are_protected_only_when_shared(model):
    for scenario, heads in (("class-il", True), ("domain-il", True), ("task-il", False)):
        method, config = tiny_method(model, scenario)
        learn(method, config, 1)
        found = {n for n in method.quadratic.importance if n.startswith("head.")}
        assert bool(found) == heads, scenario
        assert all((v > 0).any() for v in method.quadratic.importance.values())


@pytest.mark.parametrize("model", STRENGTH)
def test_no_penalty_before_the_first_task_has_ended(model):
    method, config = tiny_method(model)
    _, batches = enter(method, config, 0)
    assert not method.quadratic
    method.observe(batches[0])
    assert not method.quadratic


@pytest.mark.parametrize(("model", "flag"), [*STRENGTH.items(), ("ewc", "gamma")])
def test_zero_strength_computes_and_draws_nothing(model, flag, monkeypatch):
    method, config = tiny_method(model, **{flag: 0})
    monkeypatch.setattr(importance, "of_images", None)
    draws = method.draws.get_state()
    learn(method, config, 2)
    assert not method.quadratic
    assert torch.equal(method.draws.get_state(), draws)


@pytest.mark.parametrize(("model", "flag"), [("ewc", "fisher_n"), ("mas", "mas_n")])
def test_a_few_samples_estimate_the_importance_of_all(model, flag):
    methods = [tiny_method(model, **{flag: n})[0] for n in (0, 20)]
    config = tiny_method(model)[1]
    for method in methods:
        learn(method, config, 1)
    whole, few = (m.quadratic.importance["layers.1.weight"] for m in methods)
    assert not torch.equal(whole, few)
    torch.testing.assert_close(few.sum(), whole.sum(), rtol=0.5, atol=0)


@pytest.mark.parametrize("model", STRENGTH)
def test_ending_a_task_changes_neither_the_network_nor_its_mode(model):
    method, config = tiny_method(model)
    task, batches = enter(method, config, 0)
    method.observe(batches[0])
    method.net.train()
    before = {n: t.clone() for n, t in method.net.state_dict().items()}
    method.end_task(task)
    assert method.net.training
    for name, tensor in method.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("model", "flags"), FORMS)
def test_the_penalty_survives_saving(model, flags):
    """Loaded into a freshly built method: the same penalty, above zero, and the same next steps."""
    method, config = tiny_method(model, **flags)
    learn(method, config, 2)
    _, batches = enter(method, config, 2)
    method.observe(batches[0])
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = tiny_method(model, **flags)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert penalty(restored) > 0
    assert torch.equal(penalty(restored), penalty(method))
    for each in (method, restored):
        enter(each, config, 2)
        for batch in batches[1:4]:
            each.observe(batch)
    for name, tensor in values(method).items():
        assert torch.equal(tensor, values(restored)[name]), name


@pytest.mark.parametrize("model", STRENGTH)
def test_protection_holds_the_parameters(model):
    """Stronger penalties leave the important parameters nearer to where they were."""
    moved = []
    for strength in (0.01, 1.0, 10.0):
        method, config = tiny_method(model, **{STRENGTH[model]: strength})
        learn(method, config, 1)
        anchor, weight = dict(method.quadratic.anchor), dict(method.quadratic.importance)
        _, batches = enter(method, config, 1)
        for batch in batches:
            method.observe(batch)
        moved.append(sum((weight[n] * (v - anchor[n]) ** 2).sum().item() for n, v in values(method).items()))
    assert moved[0] > moved[1] > moved[2], moved
