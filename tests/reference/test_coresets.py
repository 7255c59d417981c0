"""Coresets (BCSR, PBCS) and Goldilocks: derivatives against autograd, projections against their
definition, what is chosen against what is known to be worth it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from engram.models.goldilocks import between
from engram.models.parts import coresets
from engram.utils.errors import UserError
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method
from tests.contract.test_methods import train


def blobs(n: int = 40, wrong: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around three corners, with a constant; the last `wrong` are mislabelled."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = F.one_hot(y, 4).double() + 0.5 * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    x = torch.cat((x, torch.ones(n, 1, dtype=torch.float64)), 1)
    y[n - wrong :] = (y[n - wrong :] + 1) % 3
    return x, y


def inner(x, y, w, theta):
    """The inner objective, as its formula reads."""
    ridge = coresets.RIDGE / 2 * theta.square().sum()
    return (w * F.cross_entropy(x @ theta, y, reduction="none")).sum() + ridge


def test_descent_follows_autograd():
    x, y = blobs()
    w = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 40
    theta = expected = torch.zeros(5, 3, dtype=torch.float64)
    for _ in range(4):
        expected = expected.detach().requires_grad_()
        (slope,) = torch.autograd.grad(inner(x, y, w, expected), expected)
        expected = expected - 0.3 * slope
    torch.testing.assert_close(coresets.descend(x, y, w, theta, 4, 0.3), expected.detach())


def test_hypergradient_is_the_implicit_functions(monkeypatch):
    """At the inner minimum, with a long series: dL/dw_i by central differences of the whole inner problem."""
    monkeypatch.setattr(coresets, "RIDGE", 0.1)  # well conditioned, so that both converge
    x, y = blobs(12)
    w = torch.full((12,), 1 / 12, dtype=torch.float64)
    zero = torch.zeros(5, 3, dtype=torch.float64)

    def solved(w: torch.Tensor) -> torch.Tensor:
        return coresets.descend(x, y, w, zero, 300, 1.0)

    found = coresets.hypergradient(x, y, w, solved(w), 1.0, 300)
    for i in range(12):
        shift = torch.zeros_like(w)
        shift[i] = 1e-5
        sides = [F.cross_entropy(x @ solved(w + sign * shift), y).item() for sign in (1, -1)]
        assert found[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("total", [1.0, 3.0])
def test_projections_are_the_nearest_points(total):
    """The optimality conditions: one shift for all that lie inside, beyond it for those on a bound."""
    for seed in range(20):
        v = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for w, upper in (
            (coresets.onto_simplex(v, total), torch.inf),
            (coresets.onto_capped_simplex(v, total), 1.0),
        ):
            assert w.sum().item() == pytest.approx(total) and w.min() >= 0 and w.max() <= upper
            inside = (w > 1e-9) & (w < upper - 1e-9)
            if inside.any():
                shift = (v - w)[inside].mean()
                torch.testing.assert_close((v - w)[inside], shift.expand(int(inside.sum())))
                assert (v[w <= 1e-9] <= shift + 1e-9).all()
                assert (v[w >= upper - 1e-9] >= upper + shift - 1e-9).all()


def bilevel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return coresets.bilevel_weights(x, y, 9, 300, 1.0, 1.0, 0.2, torch.Generator().manual_seed(0))


def probabilities(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return coresets.inclusion_probabilities(x, y, 9, 400, 1.0, 0.05, torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize(("weigh", "total"), [(bilevel, 1), (probabilities, 9)])
def test_what_is_chosen_teaches_better_than_chance(weigh, total):
    """Than 95 of 100 random choices of nine of sixty samples, twelve of them mislabelled."""
    x, y = blobs(60, wrong=12)
    w = weigh(x, y)
    assert w.sum().item() == pytest.approx(total) and w.min() >= 0 and w.max() <= 1

    def taught(rows: torch.Tensor, weights: torch.Tensor) -> float:
        share = weights[rows] / weights[rows].sum()
        theta = coresets.descend(x[rows], y[rows], share, torch.zeros(5, 3, dtype=torch.float64), 100, 1.0)
        return F.cross_entropy(x @ theta, y).item()

    draws = torch.Generator().manual_seed(1)
    random = sorted(taught(torch.randperm(60, generator=draws)[:9], torch.ones(60)) for _ in range(100))
    assert taught(w.topk(9).indices, w) < random[5]


def test_the_top_k_term_makes_weights_sparse():
    x, y = blobs(60)
    counts = []
    for beta in (0.0, 0.2):
        w = coresets.bilevel_weights(x, y, 6, 300, 1.0, 1.0, beta, torch.Generator().manual_seed(0))
        counts.append(int((w > 1e-3).sum()))
    assert counts[1] < counts[0]


@pytest.mark.parametrize("name", ["bcsr", "pbcs"])
@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
def test_the_samples_of_most_weight_are_kept(name, scenario, monkeypatch):
    """Class by class, the best first; `--coreset_candidates` a class, the others after them."""
    flags = {"coreset_steps": 3, "coreset_lr": 0.5, "coreset_candidates": 8}
    flags |= {"weight_lr": 0.4, "topk_beta": 0.1} if name == "bcsr" else {"coreset_eta": 0.1}
    size = 12 if scenario == "class-il" else 18
    method, config = tiny_method(name, scenario, buffer_size=size, **flags)
    function, seen = {"bcsr": "bilevel_weights", "pbcs": "inclusion_probabilities"}[name], []

    def weigh(x, y, k, *settings):
        seen.append((x, y, k, settings[:-1]))
        return torch.arange(len(y), 0.0, -1.0)  # the earlier candidate is the better

    monkeypatch.setattr(coresets, function, weigh)
    rows_of, features = [], method.features
    monkeypatch.setattr(method, "features", lambda raw: rows_of.append(raw) or features(raw))
    train(method, config, tasks=1)
    task, stored = method.setup.benchmark.tasks[0], method.buffer.stored()
    ((x, y, k, settings),) = seen
    assert settings == ((3, 0.5, 0.4, 0.1) if name == "bcsr" else (3, 0.5, 0.1))
    assert k == size and y.bincount().tolist() == [8] * len(task.classes)
    torch.testing.assert_close(x[:, :-1].norm(dim=1), torch.ones(len(x)))
    assert (x[:, -1] == 1).all()
    quota = size // len(task.classes)
    expected = torch.cat([rows_of[0][i * 8 : i * 8 + quota] for i in range(len(task.classes))])
    assert torch.equal(stored["x"], expected)


@pytest.mark.parametrize(
    ("n", "k", "q", "s", "kept"),
    [(10, 3, 0.2, 0.4, range(2, 6)), (10, 6, 0.2, 0.4, range(1, 7)), (10, 10, 0.5, 0.5, range(10)),
     (10, 4, 0.0, 0.9, range(0, 4)), (10, 4, 0.9, 0.0, range(6, 10)), (3, 5, 0.4, 0.4, range(3))],
)  # fmt: skip
def test_the_gap_widens_on_both_sides(n, k, q, s, kept):
    assert list(range(n))[between(n, k, q, s)] == list(kept)


def test_speeds_are_counted_along_the_task_and_the_middle_is_kept():
    """A twin that is trained beside it, one sample at a time, says who was right when."""
    flags = {"goldilocks_q": 0.2, "goldilocks_s": 0.4, "speed_probes": 4, "n_epochs": 2}
    method, config = tiny_method("goldilocks", buffer_size=8, **flags)
    benchmark, task = method.setup.benchmark, method.setup.benchmark.tasks[0]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    samples, n_steps = benchmark.train(task), benchmark.n_steps(task, 4)
    hits, step = torch.zeros(len(samples.y)), 0
    for epoch in range(2):
        for batch in benchmark.batches(task, epoch, 4):
            method.observe(batch)
            step += 1
            if step * 4 // (2 * n_steps) > (step - 1) * 4 // (2 * n_steps):
                twin = copy.deepcopy(method.net).eval()
                for i, raw in enumerate(samples.x_raw):
                    z = twin(benchmark.augment.normalise(raw[None]))[0, : len(task.classes)]
                    hits[i] += int(z.argmax() == samples.y[i])
    assert torch.equal(method.hits, hits) and len(hits.unique()) > 1
    method.end_task(task)
    stored = method.buffer.stored()
    for label in task.classes:
        ranked = sorted(hits[samples.y == label].tolist(), reverse=True)
        middle = ranked[between(len(ranked), 4, 0.2, 0.4)]
        position = {int(i): row for row, i in enumerate(samples.index)}
        kept = [hits[position[int(i)]].item() for i in stored["index"][stored["y"] == label]]
        assert len(kept) == 4 and min(middle) <= min(kept) and max(kept) <= max(middle)


@pytest.mark.parametrize("n_iters", [3, 20])
def test_speeds_are_measured_along_a_task_of_given_steps(n_iters):
    """Of 8 steps an epoch; once per probe, or after every step where there are fewer."""
    flags = {"speed_probes": 4, "n_epochs": 50, "n_iters": n_iters}
    method, config = tiny_method("goldilocks", buffer_size=8, **flags)
    seen, evaluate = [], method.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "evaluate", lambda *args: seen.append(method.n_steps) or evaluate(*args))
        train(method, config, tasks=1)
    assert seen == ([1, 2, 3] if n_iters == 3 else [5, 10, 15, 20])


def test_shares_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match="at most 1"):
        tiny_method("goldilocks", goldilocks_q=0.7, goldilocks_s=0.7)
