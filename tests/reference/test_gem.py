"""GEM: the projection against other solvers, the ring against a deque, the step against the algorithm."""

import itertools
import operator
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import lsq_linear, minimize

from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.gem import EPS
from engram.models.parts import projection
from engram.models.parts.inner_steps import InnerSteps
from engram.models.parts.projection import FLOOR, project, solve_dual
from engram.utils.buffers.ring import RingMemory
from engram.utils.config import cli
from engram.utils.errors import UserError
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.progress import DivergedError
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method


def problem(seed: int, n_tasks: int, size: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient (P,) and past gradients (T, P), at least one of which it violates."""
    generator = torch.Generator().manual_seed(seed)
    past = torch.randn(n_tasks, size, generator=generator, dtype=torch.float64)
    g = torch.randn(size, generator=generator, dtype=torch.float64) - 0.5 * past[0]
    return g, past


def active_sets(gram: np.ndarray, dots: np.ndarray, margin: float, eps: float) -> np.ndarray:
    """The dual's solution by trying every set of variables that sit on their bound v = margin."""
    P, n = gram + eps * np.eye(len(gram)) + FLOOR * np.diag(np.diag(gram)), len(dots)
    best, best_value = None, np.inf
    for bound in itertools.product([True, False], repeat=n):
        free = [i for i in range(n) if not bound[i]]
        v = np.full(n, margin)
        fixed = [i for i in range(n) if bound[i]]
        if free:
            rhs = -dots[free] - P[np.ix_(free, fixed)] @ v[fixed]
            v[free] = np.linalg.solve(P[np.ix_(free, free)], rhs)
        value = 0.5 * v @ P @ v + dots @ v
        if (v >= margin - 1e-12).all() and value < best_value:
            best, best_value = v, value
    return best


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_tasks", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_dual_equals_enumeration_of_active_sets(seed, n_tasks, margin):
    g, past = problem(seed, n_tasks)
    gram, dots = (past @ past.T).numpy(), (past @ g).numpy()
    found = solve_dual(gram, dots, margin, EPS)
    np.testing.assert_allclose(found, active_sets(gram, dots, margin, EPS), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_dual_equals_a_general_solver_with_twenty_tasks(margin):
    g, past = problem(0, 20, size=100)
    gram, dots = (past @ past.T).numpy(), (past @ g).numpy()
    P = gram + EPS * np.eye(20) + FLOOR * np.diag(np.diag(gram))
    found = solve_dual(gram, dots, margin, EPS)
    other = minimize(
        lambda v: 0.5 * v @ P @ v + dots @ v,
        np.full(20, margin + 0.1),
        jac=lambda v: P @ v + dots,
        bounds=[(margin, None)] * 20,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(found, other.x, atol=1e-6)


def test_dual_of_dependent_and_vanishing_gradients():
    """Past gradients that are equal, opposite or zero: finite, and still the minimum."""
    g = torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float64)
    past = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    gram, dots = (past @ past.T).numpy(), (past @ g).numpy()
    found = solve_dual(gram, dots, 0.0, EPS)
    np.testing.assert_allclose(found[:3], active_sets(gram[:3, :3], dots[:3], 0.0, EPS), atol=1e-9)
    assert found[3] == 0  # a gradient of zero constrains nothing


@pytest.mark.parametrize("n_tasks", [1, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_every_constraint_holds_up_to_eps(seed, n_tasks):
    """KKT: G(g + Gᵀv) + (eps + FLOOR·‖g_k‖²)·v ≥ 0, with equality where v > margin; nearly ≥ 0 as eps → 0."""
    g, past = problem(seed, n_tasks)
    projected = project(g, past, margin=0.0, eps=EPS)
    v = torch.linalg.lstsq(past.T, projected - g).solution
    slack = past @ projected + (EPS + FLOOR * past.square().sum(1)) * v
    assert (slack >= -1e-9).all()
    assert (slack[v > 1e-6].abs() < 1e-6).all()
    assert (past @ project(g, past, margin=0.0, eps=1e-10) >= -1e-6).all()


def test_projection_is_the_nearest_feasible_gradient():
    g, past = problem(1, 3, size=8)
    found = project(g, past, margin=0.0, eps=1e-12).numpy()
    nearest = minimize(
        lambda z: 0.5 * ((z - g.numpy()) ** 2).sum(),
        g.numpy(),
        jac=lambda z: z - g.numpy(),
        constraints={"type": "ineq", "fun": lambda z: past.numpy() @ z, "jac": lambda z: past.numpy()},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    np.testing.assert_allclose(found, nearest.x, atol=1e-6)


def bounded_least_squares(
    g: torch.Tensor, past: torch.Tensor, margin: float, norms: list[float]
) -> torch.Tensor:
    """The projection of g by SciPy's solver of the dual, where the past gradients are norms · past.

    min ½‖g + Gᵀw‖² + ½ Σ (EPS / norm² + FLOOR ‖g_k‖²) w², w ≥ margin, G being past, with rows of length 1.
    """
    G = past.double().numpy()
    ridge = EPS / np.asarray(norms, dtype=float) ** 2 + FLOOR * (G**2).sum(1)
    v = lsq_linear(
        np.vstack([G.T, np.diag(np.sqrt(ridge))]),
        np.concatenate([-g.double().numpy(), np.zeros(len(G))]),
        bounds=(margin, np.inf),
        method="bvls",
        tol=1e-14,
    ).x
    return g.double() + past.double().T @ torch.from_numpy(v)


@pytest.mark.parametrize("spread", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("n_tasks", [1, 2, 5, 10, 20])
def test_projection_equals_a_qp_solver_at_every_scale(n_tasks, spread):
    """float32 gradients of norm 1e-6 to 1e6, from nearly parallel to independent, of rank 1 to T.

    The solver sees the gradients at norm 1 and eps in that scale, the projection the gradients at every norm.
    """
    for seed, rank in enumerate(sorted({1, (n_tasks + 1) // 2, n_tasks})):
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(rank, 200, generator=generator, dtype=torch.float64)
        mixing = torch.randn(n_tasks, rank, generator=generator, dtype=torch.float64)
        past = F.normalize(basis[0] + spread * mixing @ basis).float()
        g = F.normalize(torch.randn(200, generator=generator), dim=0) - 0.3 * past[0]
        for norm in (1e-6, 1e-3, 1.0, 30.0, 100.0, 1e4, 1e6):
            reference = bounded_least_squares(g, past, 0.5, [norm] * n_tasks)
            projected = project(norm * g, norm * past, margin=0.5, eps=EPS).double() / norm
            torch.testing.assert_close(projected, reference, rtol=1e-3, atol=2e-5)


def test_past_gradients_of_very_different_norms():
    """Norms 1e-6 to 1e6 within one problem, margin 0: eps outweighs those much shorter than its root."""
    g, past = problem(3, 7, size=50)
    past, norms = F.normalize(past), np.logspace(-6, 6, 7)
    projected = project(g, past * torch.from_numpy(norms).unsqueeze(1), margin=0.0, eps=EPS)
    torch.testing.assert_close(projected, bounded_least_squares(g, past, 0.0, norms.tolist()))


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0, 60.0])
def test_eps_is_the_official_codes_at_every_scale(scale):
    """Its P is GGᵀ + 1e-3 I. Relative to ‖g_k‖² it let gradients that have nearly vanished decide."""
    g, past = problem(5, 4)
    gram, dots = (scale**2 * past @ past.T).numpy(), (scale * past @ g).numpy()
    P = gram + 1e-3 * np.eye(4)
    v = solve_dual(gram, dots, 0.0, EPS)
    gradient = P @ v + dots
    assert (v >= 0).all() and (gradient >= -1e-6 * np.abs(dots).max()).all()
    assert np.abs(v * gradient).max() <= 1e-6 * np.abs(dots).max() * max(v.max(), 1)


@pytest.mark.parametrize("norm", [1.0, 10.0, 30.0])
def test_opposed_gradients_are_weighed_as_in_the_official_code(norm):
    """Two on one line but for an angle of 1e-4: what P has beside GGᵀ and 1e-3 I decides how far to turn."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        one, off = F.normalize(torch.randn(2, 500, generator=generator, dtype=torch.float64))
        past = norm * torch.stack([one, -F.normalize(one + 1e-4 * off, dim=0)])
        g = -F.normalize(past.sum(0), dim=0)  # against both
        gram, dots = (past @ past.T).numpy(), (past @ g).numpy()
        found = solve_dual(gram, dots, 0.0, EPS)
        assert found.min() > 0, "the official P alone tells these two apart"
        np.testing.assert_allclose(found, np.linalg.solve(gram + 1e-3 * np.eye(2), -dots), rtol=1e-2)


def test_near_parallel_gradients_of_large_norm_are_projected():
    """Ten of norm 300 that differ by 1e-4: rounded to float32 their Gram matrix is not positive definite."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        past = torch.randn(1, 2000, generator=generator) + 1e-4 * torch.randn(10, 2000, generator=generator)
        past = 300 * F.normalize(past)
        g = torch.randn(2000, generator=generator) - past[0]
        projected = project(g, past, margin=0.0, eps=EPS)
        assert (F.normalize(past) @ projected > -EPS * g.norm()).all()


@pytest.mark.parametrize("n_tasks", [2, 20, 100])
def test_equal_gradients_of_a_huge_norm_are_projected(n_tasks):
    """Of norm 1e8, eps is below the rounding of ‖g_k‖²: GGᵀ + 1e-3 I alone is not positive definite."""
    generator = torch.Generator().manual_seed(n_tasks)
    past = (1e8 * F.normalize(torch.randn(1, 300, generator=generator))).expand(n_tasks, -1)
    g = torch.randn(300, generator=generator) - 5e-8 * past[0]
    projected = project(g, past, margin=0.0, eps=EPS)
    assert (F.normalize(past) @ projected > -1e-4 * g.norm()).all()


def test_blocks_of_columns_add_up_to_the_gram_matrix(monkeypatch):
    a, b = torch.randn(2, 3, 100, generator=torch.Generator().manual_seed(0)).unbind()
    monkeypatch.setattr(projection, "BLOCK", 7)
    for found, other in zip(projection.products(a, a, b), (a, b), strict=True):
        torch.testing.assert_close(found, a.double() @ other.double().T, rtol=1e-12, atol=1e-12)


def test_nothing_is_projected_without_a_violation():
    g, past = torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert project(g, past, margin=0.5, eps=EPS) is None
    assert project(torch.tensor([1.0, 0.0]), past, margin=0.5, eps=EPS) is None  # orthogonal: not violated


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_network_is_left_to_the_trainer(value):
    past = torch.tensor([[1.0, value], [-1.0, 0.0]])
    assert project(torch.tensor([1.0, 0.0]), past, margin=0.5, eps=EPS) is None
    past = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert project(torch.tensor([-1.0, value]), past, margin=0.5, eps=EPS) is None


def test_a_diverging_run_ends_with_the_divergence_message(tmp_path, monkeypatch):
    """Past gradients that are nearly parallel, against the batch's, and three times larger at every step."""
    norms = itertools.accumulate(itertools.repeat(3.0), operator.mul)

    def gradients(self, learning, samples, counts):
        g = torch.cat([p.grad.flatten() for p in learning.values()])
        noise = torch.randn(len(counts), len(g), generator=torch.Generator().manual_seed(0))
        return -next(norms) * (g + 1e-4 * g.norm() / len(g) ** 0.5 * noise)

    monkeypatch.setattr(InnerSteps, "gradients_by_part", gradients)
    flags = ["--model=gem", "--dataset=seq-digits", "--device=cpu", "--lr=1e-6", "--n_iters=8"]
    config = cli.parse([*flags, "--batch_size=20"]).config
    method = build_method(config, torch.device("cpu"), proxies.create)
    with pytest.raises(DivergedError, match="the loss became"):
        Trainer(config, method, folder=tmp_path, quiet=True).run()
    assert next(norms) > 3.0**20  # at least three past tasks were projected onto


# --- the memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("per_task", [1, 4, 7])
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_ring_holds_what_a_deque_holds(per_task, batch):
    ring = RingMemory(2, per_task, torch.Generator(), "cpu")
    deques = [deque(maxlen=per_task) for _ in range(2)]
    for step, values in enumerate(torch.arange(80).split(batch)):
        task = step % 2
        ring.add(task, x=values, y=-values)
        deques[task].extend(values.tolist())
        assert sorted(ring.of(task)["x"].tolist()) == sorted(deques[task])
        assert torch.equal(ring.of(task)["y"], -ring.of(task)["x"])
    assert ring.tasks() == [0, 1]
    assert len(ring.stored()["x"]) == 2 * per_task


def test_only_filled_places_are_used():
    ring = RingMemory(3, 5, torch.Generator(), "cpu")
    assert ring.tasks() == [] and ring.stored() == {}
    ring.add(1, x=torch.tensor([7, 8]))
    assert ring.tasks() == [1] and ring.of(1)["x"].tolist() == [7, 8]
    assert ring.stored()["x"].tolist() == [7, 8]


def test_ring_survives_saving():
    ring = RingMemory(2, 3, torch.Generator(), "cpu")
    ring.add(0, x=torch.arange(5))
    restored = RingMemory(2, 3, torch.Generator(), "cpu")
    restored.load_state_dict(ring.state_dict())
    for each in (ring, restored):
        each.fields = {n: t.clone() for n, t in each.fields.items()}
        each.add(0, x=torch.tensor([90]))
    assert restored.of(0)["x"].tolist() == ring.of(0)["x"].tolist()


def test_a_memory_smaller_than_the_number_of_tasks_is_refused():
    with pytest.raises(UserError, match="at least 3"):
        tiny_method("gem", buffer_size=2)
    assert tiny_method("gem", buffer_size=3)[0].buffer.per_task == 1
    assert tiny_method("gem", buffer_size=11)[0].buffer.per_task == 3


# --- the step -----------------------------------------------------------------------------------


class OfficialMemory:
    """The official code's: an array per task, one counter for all that is not reset between tasks."""

    def __init__(self, n_tasks: int, m: int):
        self.slots, self.m, self.counter = [[None] * m for _ in range(n_tasks)], m, 0

    def __getitem__(self, task: int) -> list:
        return self.slots[task]

    def write(self, task: int, samples: list) -> None:
        end = min(self.counter + len(samples), self.m)
        self.slots[task][self.counter : end] = samples[: end - self.counter]
        self.counter = 0 if end == self.m else end


def naive_gem(net, options, n_tasks: int, steps: list, lr: float, official: bool = False) -> list[int]:
    """Algorithm 1 in plain Python, a list per task; returns the steps at which it projected.

    steps: (task, batch) in order; both are the stream's. Images are only normalised. official: with that
    code's memory, written before the gradients are taken.
    """
    m = options.buffer_size // n_tasks
    memory = OfficialMemory(n_tasks, m) if official else [deque(maxlen=m) for _ in range(n_tasks)]
    parameters, projections = list(net.parameters()), []
    for number, (task, batch) in enumerate(steps):
        if official:
            memory.write(task, list(zip(batch.x, batch.y, strict=True)))
        loss = F.cross_entropy(net(batch.x, batch.task_id), batch.y)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        past = []
        for k in range(task):
            x, y = (torch.stack(parts) for parts in zip(*memory[k], strict=True))
            loss = F.cross_entropy(net(x, torch.full_like(y, k)), y)
            past.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double())
        if past and any(gradient @ p < 0 for p in past):
            G = torch.stack(past)
            v = active_sets((G @ G.T).numpy(), (G @ gradient).numpy(), options.memory_strength, EPS)
            gradient = gradient + G.T @ torch.from_numpy(v)
            projections.append(number)
        with torch.no_grad():
            for p, g in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
                p -= lr * g.view_as(p).float()
        if not official:
            memory[task].extend(zip(batch.x, batch.y, strict=True))
    return projections


def learned(scenario: str, n_steps: int | None = None, **flags):
    """A method trained on three tasks, `n_steps` each, an untrained twin, and the steps (task, batch)."""
    method, config = tiny_method("gem", scenario, **flags)
    twin, _ = tiny_method("gem", scenario, **flags)
    method.augment = method.setup.benchmark.augment.normalise
    steps = []
    for task in method.setup.benchmark.tasks:
        method.enter(task)
        method.optimizer = build_optimizer(method.trainable().values(), config.train)
        batches = method.setup.benchmark.batches(task, 0, config.train.batch_size)
        for batch in itertools.islice(batches, n_steps):
            batch = batch._replace(x=method.augment(batch.x_raw))
            method.observe(batch)
            steps.append((task.id, batch))
    return method, twin, steps


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
@pytest.mark.parametrize(("buffer_size", "strength"), [(15, 0.5), (15, 0.0), (300, 0.5)])
def test_training_equals_a_naive_transcription(scenario, buffer_size, strength):
    """Over three tasks, in which the gradient is projected many times: parameters to 1e-6."""
    flags = {"buffer_size": buffer_size, "memory_strength": strength}
    method, twin, steps = learned(scenario, **flags)
    projections = naive_gem(twin.net, method.options, 3, steps, 0.05)
    assert 10 < len(projections) < len(steps)
    for (name, a), b in zip(method.net.named_parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_training_equals_the_official_codes_order_and_ring(strength):
    """Batches of one, 54 steps: memory written first, its counter carried from task to task."""
    method, twin, steps = learned("domain-il", 18, buffer_size=15, memory_strength=strength, batch_size=1)
    projections = naive_gem(twin.net, method.options, 3, steps, 0.05, official=True)
    assert len(projections) > 10
    for (name, a), b in zip(method.net.named_parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_a_gradient_that_violates_nothing_is_untouched():
    method, _ = tiny_method("gem")
    first, second = method.setup.benchmark.tasks[:2]
    batch = next(method.setup.benchmark.batches(first, 0, 4))
    method.enter(first)
    method.buffer.add(0, x=batch.x_raw, y=batch.y, task_id=batch.task_id, index=batch.index)
    method.enter(second)
    method.augment = lambda raw: batch.x
    F.cross_entropy(method.logits(batch.x, batch.task_id), batch.y).backward()
    before = [p.grad.clone() for p in method.net.parameters()]
    method.edit_gradients(batch)  # memory and batch are the same samples
    for p, g in zip(method.net.parameters(), before, strict=True):
        assert torch.equal(p.grad, g)


def test_a_sample_is_stored_once_whatever_the_epochs():
    method, config = tiny_method("gem", buffer_size=3000)
    task = method.setup.benchmark.tasks[0]
    method.enter(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    for epoch in range(3):
        method.epoch = epoch
        for batch in method.setup.benchmark.batches(task, epoch, 4):
            method.observe(batch)
    index = method.buffer.stored()["index"]
    assert sorted(index.tolist()) == sorted(method.setup.benchmark.train(task).index.tolist())
    assert method.buffer.stored()["x"].dtype == torch.uint8
