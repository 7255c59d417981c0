"""HAL: the step and the anchors against autograd by hand, the means of features against a loop."""

import copy

import pytest
import torch
import torch.nn.functional as F

from engram.models.hal import update_means
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method
from tests.contract.test_methods import train

SCENARIOS = ["class-il", "task-il", "domain-il"]


def started(scenario: str, tasks: int = 1, **flags):
    """A method that has learned `tasks` tasks and begun the next."""
    method, config = tiny_method("hal", scenario, buffer_size=12, anchor_steps=3, **flags)
    train(method, config, tasks=tasks)
    task = method.setup.benchmark.tasks[tasks]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    return method, task


def own_classes(method, task_id: int) -> list[int]:
    """Columns that a sample of the task may use."""
    tasks = method.setup.benchmark.tasks
    return list(tasks[task_id].classes) if method.allowed_classes is not None else list(range(6))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_step_descends_through_the_temporary_step(scenario, monkeypatch):
    """Gradient of ℓ + λ mean (f_θ(e) − f_{θ − lr ∇ℓ(θ)}(e))², by central differences in double precision."""
    method, task = started(scenario, hal_lambda=3.0)
    method.net.double()
    method.anchors["x"] = method.anchors["x"].double()
    batch = next(method.setup.benchmark.batches(task, 0, 4))
    batch = batch._replace(x=batch.x.double())
    monkeypatch.setattr(method, "replay", lambda: None)
    parameters = list(method.trainable().values())
    gradients = torch.autograd.grad(method.loss(batch), parameters, allow_unused=True)
    anchors = list(zip(*(method.anchors[n].split(1) for n in ("x", "y", "task_id")), strict=True))

    def objective() -> float:
        net, fast = method.net, copy.deepcopy(method.net)
        loss = F.cross_entropy(method.logits(batch.x, batch.task_id), batch.y)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            moving = [p for p in fast.parameters() if p.requires_grad]
            for p, g in zip(moving, slopes, strict=True):
                p -= 0 if g is None else 0.05 * g
            changes = []
            for e, _, owner in anchors:
                columns = own_classes(method, int(owner))
                changes.append((net(e, owner) - fast(e, owner))[0, columns].square().sum().item())
        return loss.item() + 3.0 * sum(changes) / len(changes) / 6  # outputs

    generator, step = torch.Generator().manual_seed(0), 1e-5
    for p, g in zip(parameters, gradients, strict=True):
        if g is None:
            continue
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p += sign * step * direction
            values.append(objective())
            with torch.no_grad():
                p -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert (g * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_anchors_climb_one_by_one_as_by_hand(scenario):
    """A loop over anchors with the objective's own gradient; nothing of one anchor depends on another."""
    method, task = started(scenario, anchor_lr=0.2)
    y = torch.tensor(task.classes)
    generator = torch.Generator().manual_seed(1)
    method.mean_features.copy_(torch.rand(6, 8, generator=generator))
    tuned, owner = copy.deepcopy(method.net), torch.full_like(y, task.id)
    with torch.no_grad():
        for p in tuned.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    start = torch.rand(len(y), 1, 6, 6, generator=generator)
    found = method.climb(tuned, start.clone(), y, owner)
    columns = own_classes(method, task.id)
    for i, label in enumerate(y.tolist()):
        e = start[i : i + 1]
        for _ in range(3):
            e = e.detach().requires_grad_()
            at = columns.index(label)
            after = -tuned(e, owner[:1])[0, columns].log_softmax(0)[at]
            before = -method.net(e, owner[:1])[0, columns].log_softmax(0)[at]
            far = ((method.net.features(e)[0] - method.mean_features[label]) ** 2).sum()
            (after - before - 0.1 * far).backward()
            e = (e + 0.2 * e.grad).detach().clamp(0, 1)
        torch.testing.assert_close(found[i : i + 1], e)
    assert not torch.equal(found, start)


def test_anchors_are_kept_one_for_each_class_of_each_task():
    method, config = tiny_method("hal", buffer_size=12, anchor_steps=2)
    train(method, config)
    assert method.anchors["y"].tolist() == list(range(6))
    assert method.anchors["task_id"].tolist() == [0, 0, 1, 1, 2, 2]
    assert method.anchors["x"].shape == (6, 1, 6, 6)


def test_the_memorys_network_is_one_epoch_of_sgd_away():
    method, _ = started("class-il")
    method.augment = method.setup.benchmark.augment.normalise
    draws, stored = torch.Generator(), method.buffer.stored()
    draws.set_state(method.draws.get_state())
    twin = copy.deepcopy(method.net)
    for rows in torch.randperm(len(stored["y"]), generator=draws).split(4):
        loss = F.cross_entropy(twin(method.augment(stored["x"][rows])), stored["y"][rows])
        slopes = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), slopes, strict=True):
                p -= 0.05 * g
    before = [p.clone() for p in method.net.parameters()]
    for a, b in zip(method.after_replay().parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(before, method.net.parameters(), strict=True))


def test_running_means_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    means, expected = torch.zeros(4, 3), [torch.zeros(3) for _ in range(4)]
    for _ in range(10):
        y, feats = torch.randint(3, (5,), generator=generator), torch.rand(5, 3, generator=generator)
        update_means(means, feats, y, 0.5)
        for c in set(y.tolist()):
            mine = [f for f, label in zip(feats, y.tolist(), strict=True) if label == c]
            expected[c] = 0.5 * expected[c] + 0.5 * sum(mine) / len(mine)
    torch.testing.assert_close(means, torch.stack(expected))
    assert not means[3].any()
