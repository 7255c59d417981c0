"""BiC: the correction on synthetic bias and against a grid, the loss against a loop, what is held out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian

from engram.backbones.backbone import build_network
from engram.models.bic import RIDGE, BiC, corrected, fit_bias
from engram.models.method import Setup
from engram.utils.errors import UserError
from tests.conftest import tiny_benchmark, tiny_config, tiny_method
from tests.contract.test_methods import train


def biased(n: int, alpha: float, beta: float, first: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose columns from `first` on need α z + β, and labels drawn from the corrected softmax."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(n, 5, generator=generator, dtype=torch.float64)
    y = torch.multinomial(z.softmax(1), 1, generator=generator).view(-1)
    z[:, first:] = (z[:, first:] - beta) / alpha
    return z, y


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, -1.5), (1.0, 0.0), (1.3, 0.7), (0.8, -3.0)])
def test_the_two_parameters_are_recovered(alpha, beta):
    """Maximum likelihood: within 5 standard errors by the Fisher information, alarm below 1e-6 per number."""
    logits, y = biased(20_000, alpha, beta)
    truth = torch.tensor([alpha, beta], dtype=torch.float64)
    information = hessian(lambda b: F.cross_entropy(corrected(logits, b, 3), y), truth)
    errors = information.inverse().diagonal().div(len(y)).sqrt()
    found = fit_bias(logits.float(), y, 3)
    assert ((found - truth).abs() < 5 * errors + 10 * RIDGE).all() and (errors < 0.1).all()


def test_the_fit_is_the_minimum():
    logits, y = biased(200, 0.7, -1.0)
    found = fit_bias(logits, y, 3)

    def cost(bias: torch.Tensor) -> float:
        ridge = RIDGE / 2 * ((bias[0] - 1) ** 2 + bias[1] ** 2)
        return (F.cross_entropy(corrected(logits, bias, 3), y) + ridge).item()

    for direction in range(16):
        angle = math.tau * direction / 16
        step = 1e-3 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert cost(found) < cost(found + step)


def test_separable_samples_give_finite_numbers():
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    assert fit_bias(logits, torch.tensor([0, 2]), 1).abs().max() < 100


def bic_in_its_second_task(**flags):
    method, config = tiny_method("bic", buffer_size=24, **flags)
    train(method, config, tasks=2)
    method.bias.copy_(torch.tensor([0.8, 0.3]))  # what the third task's teacher is corrected with
    task = method.setup.benchmark.tasks[2]
    method.enter(task)
    method.begin_task(task)
    return method, task


def test_loss_equals_the_papers_terms(monkeypatch):
    method, task = bic_in_its_second_task(minibatch_size=5, valset_split=0.3, softmax_temp=3)
    with torch.no_grad():  # away from the teacher
        method.net.head.weight.add_(0.1 * torch.randn(6, 8, generator=torch.Generator().manual_seed(1)))
    seen, union = [], method.union
    monkeypatch.setattr(method, "union", lambda batch: seen.append(union(batch)) or seen[-1])
    batches = list(method.setup.benchmark.batches(task, 0, 4))
    losses = [method.loss(batch).item() for batch in batches]
    assert any(method.held[samples.task_id, samples.index].any() for samples in seen)
    for loss, samples in zip(losses, seen, strict=True):
        terms = []
        rows = zip(samples.x, samples.y.tolist(), samples.task_id, samples.index, strict=True)
        for x, y, task_id, index in rows:
            if method.held[task_id, index]:
                continue
            z = method.net(x[None])[0].tolist()
            taught = method.teacher(x[None])[0].tolist()
            taught[2:4] = [0.8 * value + 0.3 for value in taught[2:4]]
            soft = [math.exp(v / 3) / sum(math.exp(w / 3) for w in taught[:4]) for v in taught[:4]]
            log_p = [v / 3 - math.log(sum(math.exp(w / 3) for w in z[:4])) for v in z[:4]]
            distilled = -sum(q * p for q, p in zip(soft, log_p, strict=True))
            entropy = math.log(sum(math.exp(w) for w in z)) - z[y]
            terms.append(4 / 6 * distilled + 2 / 6 * entropy)
        assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_the_same_number_of_every_class_is_held_out():
    method, _ = bic_in_its_second_task(valset_split=0.3)
    benchmark, stored = method.setup.benchmark, method.buffer.stored()
    held = method.held.any(0).nonzero().view(-1).tolist()  # no index is in two tasks here
    samples = benchmark.train(benchmark.tasks[2])
    pools = {int(i): int(y) for i, y in zip(stored["index"], stored["y"], strict=True)}
    pools |= {int(i): int(y) for i, y in zip(samples.index, samples.y, strict=True)}
    counts = torch.tensor([pools[i] for i in held]).bincount(minlength=6)
    assert counts.tolist() == [2] * 6, "6 exemplars of each old class: ceil(0.3 · 6)"
    for label in range(4):
        mine = stored["index"][stored["y"] == label].tolist()
        assert [i for i in mine if i in held] == [mine[0], mine[3]]


def test_tasks_of_the_same_images_hold_out_their_own():
    """Permutations with outputs of their own: an index stands for another sample in every task."""
    config = tiny_config("bic", scenario="class-il", buffer_size=72, valset_split=0.3)
    benchmark = tiny_benchmark(config, "domain-il")
    net = build_network("mlp", config.architecture, benchmark, 0)
    method = BiC(net, config.method, Setup(benchmark, config.train, 0))
    train(method, config, tasks=2)
    method.enter(benchmark.tasks[2])
    method.begin_task(benchmark.tasks[2])
    stored, samples = method.buffer.stored(), benchmark.train(benchmark.tasks[2])
    assert set(stored["index"].tolist()) & set(samples.index.tolist())
    held = [pool[own] for pool, own in (
        (stored["y"], method.held[stored["task_id"], stored["index"]]),
        (samples.y, method.held[2, samples.index]),
    )]  # fmt: skip
    assert torch.cat(held).bincount(minlength=18).tolist() == [2] * 18, "of 6 exemplars ceil(0.3 · 6)"


def test_a_memory_of_fewer_than_two_exemplars_per_class_is_refused():
    """One of each class is held out: there must be another to train on."""
    with pytest.raises(UserError, match=r"--buffer_size 11: 2 slots for each class .* give at least 12"):
        tiny_method("bic", buffer_size=11)


def test_only_the_last_tasks_logits_are_corrected():
    method, _ = bic_in_its_second_task()
    method.bias.copy_(torch.tensor([2.0, -1.0]))
    x = torch.randn(5, 1, 6, 6)
    z, found = method.net(x), method.predict(x, None)
    assert torch.equal(found[:, :4], z[:, :4])
    torch.testing.assert_close(found[:, 4:], 2 * z[:, 4:] - 1)


def test_end_task_fits_the_held_out_samples():
    method, task = bic_in_its_second_task(valset_split=0.3)
    benchmark, held = method.setup.benchmark, method.held
    samples, stored = benchmark.train(task), method.buffer.stored()
    old, new = held[stored["task_id"], stored["index"]], held[task.id, samples.index]
    x = torch.cat((stored["x"][old], samples.x_raw[new]))
    y = torch.cat((stored["y"][old], samples.y[new]))
    with torch.no_grad():
        expected = fit_bias(method.net(benchmark.augment.normalise(x)), y, 4)
    method.end_task(task)
    torch.testing.assert_close(method.bias, expected.float())
