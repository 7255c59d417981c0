"""MER against a naive transcription of Algorithm 1 and against the cases in which it is plain SGD."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_method
from utils.errors import UserError
from utils.training import build_optimizer


def prepared(scenario: str = "class-il", **flags):
    """A method about to learn its first task, without augmentation, and that task's batches."""
    method, config = tiny_method("mer", scenario, **flags)
    benchmark = method.setup.benchmark
    method.augment = benchmark.augment.normalise
    task = benchmark.tasks[0]
    method.enter(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    batches = benchmark.batches(task, 0, config.train.batch_size)
    return method, [b._replace(x=method.augment(b.x_raw)) for b in batches]


def sgd(net, x, task_id, y, lr: float) -> None:
    """θ ← θ − lr ∇CE, by hand."""
    gradients = torch.autograd.grad(F.cross_entropy(net(x, task_id), y), list(net.parameters()))
    with torch.no_grad():
        for p, g in zip(net.parameters(), gradients, strict=True):
            p -= lr * g


def naive_mer(net, method, batches, generator: torch.Generator) -> list:
    """Algorithm 1 with lists, in the official code's order; the memory's draws come from `generator`."""
    o, lr = method.options, method.setup.train.lr
    memory, age = [], 0
    for batch in batches:
        for i in range(len(batch.y)):
            current = (batch.x[i], batch.task_id[i], batch.y[i])
            k = min(o.minibatch_size, len(memory))
            n_draws = o.batches_per_example * k
            rows = torch.randint(len(memory), (n_draws,), generator=generator).tolist() if k else []
            across = copy.deepcopy(net.state_dict())
            for s in range(o.batches_per_example):
                within = copy.deepcopy(net.state_dict())
                for x, t, y in [current, *(memory[r] for r in rows[s * k : (s + 1) * k])]:
                    sgd(net, x[None], t[None], y[None], lr)
                interpolate(net, within, o.beta)
            interpolate(net, across, o.gamma)
            age += 1
            draw = torch.rand(1, generator=generator, dtype=torch.float64).item()
            slot = age - 1 if age <= o.buffer_size else int(draw * age)
            if age <= o.buffer_size:
                memory.append(current)
            elif slot < o.buffer_size:
                memory[slot] = current
    return memory


def interpolate(net, start: dict, rate: float) -> None:
    end = net.state_dict()
    net.load_state_dict({n: start[n] + rate * (end[n] - start[n]) for n in end})


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
@pytest.mark.parametrize("flags", [{"beta": 0.3, "gamma": 1.0}, {"beta": 0.5, "gamma": 0.6}])
def test_fifty_examples_equal_a_naive_transcription(flags, scenario):
    flags |= {"buffer_size": 12, "minibatch_size": 5, "batches_per_example": 3, "n_tasks": 1}
    method, batches = prepared(scenario, **flags)
    batches = batches[:13]  # 52 examples
    net, generator = copy.deepcopy(method.net), torch.Generator()
    generator.set_state(method.buffer.generator.get_state())
    for batch in batches:
        method.observe(batch)
    memory = naive_mer(net, method, batches, generator)
    for (name, a), b in zip(method.net.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)
    stored = method.augment(method.buffer.stored()["x"])
    assert torch.equal(stored, torch.stack([x for x, _, _ in memory]))


@pytest.mark.parametrize("k", [1, 8])
def test_without_reptile_and_memory_it_is_online_sgd(k):
    off = {"beta": 1, "gamma": 1, "batches_per_example": 1, "buffer_size": 0, "minibatch_size": k}
    method, batches = prepared(**off)
    net = copy.deepcopy(method.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=method.setup.train.lr, fused=True)
    for batch in batches[:5]:
        method.observe(batch)
        for i in range(len(batch.y)):
            optimizer.zero_grad()
            F.cross_entropy(net(batch.x[i : i + 1]), batch.y[i : i + 1]).backward()
            optimizer.step()
    for a, b in zip(method.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("beta", "gamma"), [(0.03, 1.0), (1.0, 0.2), (0.5, 0.5)])
def test_a_batch_of_one_sample_is_sgd_with_the_rate_times_beta_times_gamma(beta, gamma):
    method, batches = prepared(beta=beta, gamma=gamma, batches_per_example=1, buffer_size=0)
    net = copy.deepcopy(method.net)
    for batch in batches[:5]:
        method.observe(batch)
        for i in range(len(batch.y)):
            sgd(net, batch.x[i : i + 1], None, batch.y[i : i + 1], method.setup.train.lr * beta * gamma)
    for a, b in zip(method.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_inner_rate_is_the_optimizers():
    """A learning-rate schedule reaches the inner steps."""
    method, batches = prepared(beta=1, buffer_size=0, batches_per_example=1, batch_size=1)
    net = copy.deepcopy(method.net)
    method.optimizer.param_groups[0]["lr"] = 0.007
    method.observe(batches[0])
    sgd(net, batches[0].x, None, batches[0].y, 0.007)
    for a, b in zip(method.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_loss_reported_is_that_of_the_current_examples():
    method, batches = prepared(batch_size=1)
    expected = F.cross_entropy(method.net(batches[0].x), batches[0].y)
    torch.testing.assert_close(method.observe(batches[0])["loss"], expected.detach())


def test_a_sample_is_offered_once_whatever_the_epochs():
    method, batches = prepared(buffer_size=1000, batches_per_example=1, minibatch_size=1)
    for method.epoch in range(2):
        for batch in batches:
            method.observe(batch)
    n = sum(len(batch.y) for batch in batches)
    assert method.buffer.n_seen == n
    assert len(method.buffer.stored()["index"].unique()) == n


@pytest.mark.parametrize("flags", [{"optim_mom": 0.9}, {"optim_wd": 1e-4}, {"optimizer": "adam"}])
def test_an_optimizer_that_would_be_ignored_is_refused(flags):
    with pytest.raises(UserError, match="plain SGD"):
        tiny_method("mer", **flags)
