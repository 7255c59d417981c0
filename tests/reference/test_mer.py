"""MER against a naive transcription of Algorithms 1, 6 and 7, and the cases in which it is plain SGD."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from engram.utils.buffers.reservoir import distinct
from engram.utils.errors import UserError
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method


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


def rows_drawn(o, n_stored: int, generator: torch.Generator) -> list[list[int]]:
    """Places in the memory for each batch of one example, from the buffer's own generator."""
    k = min(o.minibatch_size, n_stored)
    if not k:
        return [[]] * o.batches_per_example
    if o.draws == "distinct":
        return [distinct(n_stored, k, generator).tolist() for _ in range(o.batches_per_example)]
    rows = torch.randint(n_stored, (o.batches_per_example * k,), generator=generator).tolist()
    return [rows[s * k : (s + 1) * k] for s in range(o.batches_per_example)]


def naive_mer(net, method, batches, generator: torch.Generator, places: torch.Generator) -> list:
    """Algorithms 1, 6 and 7 with lists; the memory's draws come from `generator`, alg7's from `places`."""
    o, lr = method.options, method.setup.train.lr
    memory, age = [], 0
    for batch in batches:
        for i in range(len(batch.y)):
            current = (batch.x[i], batch.task_id[i], batch.y[i])
            age += 1
            across = copy.deepcopy(net.state_dict())
            for rows in rows_drawn(o, len(memory), generator):
                within = copy.deepcopy(net.state_dict())
                samples = [(memory[r], 1.0) for r in rows]
                if o.mer_variant == "alg7":
                    place = torch.randint(len(rows) + 1, (), generator=places).item()
                    samples.insert(place, (current, o.current_weight))
                elif o.mer_variant == "alg1" and o.current == "first":
                    samples = [(current, 1.0), *samples]
                else:
                    samples = [*samples, (current, 1.0)]
                for (x, t, y), weight in samples if o.mer_variant != "alg7" or age > 1 else []:
                    sgd(net, x[None], t[None], y[None], lr * weight)
                interpolate(net, within, o.beta if o.mer_variant == "alg1" else o.gamma)
            if o.mer_variant == "alg1":
                interpolate(net, across, o.gamma)
            draw = torch.rand(1, generator=generator, dtype=torch.float64).item()
            if len(memory) < o.buffer_size:
                memory.append(current)
            elif (slot := int(draw * (age + (o.reservoir == "original")))) < o.buffer_size:
                memory[slot] = current
    return memory


def interpolate(net, start: dict, rate: float) -> None:
    end = net.state_dict()
    net.load_state_dict({n: start[n] + rate * (end[n] - start[n]) for n in end})


VARIANTS = [
    {"beta": 0.3, "batches_per_example": 3},
    {"beta": 0.5, "gamma": 0.6, "batches_per_example": 3},
    {"beta": 0.3, "batches_per_example": 2, "current": "last", "reservoir": "uniform", "draws": "distinct"},
    {"mer_variant": "alg6", "gamma": 0.3},
    {"mer_variant": "alg6", "gamma": 0.5, "batches_per_example": 2, "reservoir": "uniform"},
    {"mer_variant": "alg7", "gamma": 0.3, "current_weight": 5.0},
    {"mer_variant": "alg7", "gamma": 0.6, "current_weight": 2.0, "draws": "distinct"},
]


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: "-".join(map(str, flags.values())))
def test_fifty_examples_equal_a_naive_transcription(flags, scenario):
    flags = {"buffer_size": 12, "minibatch_size": 5, "n_tasks": 1, **flags}
    method, batches = prepared(scenario, **flags)
    batches = batches[:13]  # 52 examples
    net, generator, places = copy.deepcopy(method.net), torch.Generator(), torch.Generator()
    generator.set_state(method.buffer.generator.get_state())
    places.set_state(method.places.get_state())
    for batch in batches:
        method.observe(batch)
    memory = naive_mer(net, method, batches, generator, places)
    for (name, a), b in zip(method.net.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)
    stored = method.augment(method.buffer.stored()["x"])
    assert torch.equal(stored, torch.stack([x for x, _, _ in memory]))


def test_alg7_puts_the_current_sample_at_a_uniform_place():
    """Chi-square over 6 places; false alarm 1e-4."""
    method, _ = prepared(mer_variant="alg7")
    places = [method.position(6) for _ in range(3000)]
    assert stats.chisquare(np.bincount(places, minlength=6)).pvalue > 1e-4


def test_alg7_lets_the_first_example_pass():
    method, batches = prepared(mer_variant="alg7", batch_size=1)
    before = copy.deepcopy(method.net.state_dict())
    loss = method.observe(batches[0])["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(method.net(batches[0].x), batches[0].y).detach())
    assert all(torch.equal(before[name], p) for name, p in method.net.state_dict().items())
    assert len(method.buffer) == 1
    method.observe(batches[1])
    assert any(not torch.equal(before[name], p) for name, p in method.net.state_dict().items())


@pytest.mark.parametrize(
    "flags",
    [
        {"mer_variant": "alg7", "batches_per_example": 2},
        {"mer_variant": "alg6", "current_weight": 3.0},
        {"current_weight": 3.0},
    ],
)
def test_flags_of_another_variant_are_refused(flags):
    with pytest.raises(UserError, match="alg7"):
        tiny_method("mer", **flags)


@pytest.mark.parametrize("k", [1, 8])
def test_without_reptile_and_memory_it_is_online_sgd(autograd, k):
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


@pytest.mark.parametrize("variant", ["alg1", "alg6"])
@pytest.mark.parametrize(("beta", "gamma"), [(0.03, 1.0), (1.0, 0.2), (0.5, 0.5)])
def test_a_batch_of_one_sample_is_sgd_with_the_rate_times_beta_times_gamma(beta, gamma, variant):
    method, batches = prepared(
        beta=beta, gamma=gamma, batches_per_example=1, buffer_size=0, mer_variant=variant
    )
    beta = beta if variant == "alg1" else 1.0
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
