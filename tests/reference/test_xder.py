"""X-DER: rectification, the losses and what is stored, against loops over samples."""

import math

import pytest
import torch

from engram.models.xder import rectified
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method
from tests.contract.test_methods import train


def by_loop(stored: list[float], now: list[float], y: int, columns: range, gamma: float) -> list[float]:
    """One sample's logits."""
    largest, true = max(now[c] for c in columns), stored[y]
    new = list(now)
    if largest > true > 0:
        new = [z * gamma * true / largest for z in now]
    elif largest > true:
        new = [z - largest + true for z in now]
    return [new[c] if c in columns else stored[c] for c in range(len(stored))]


@pytest.mark.parametrize(("first", "end"), [(2, 6), (4, 6), (0, 2)])
def test_rectification_equals_a_loop(first, end):
    generator = torch.Generator().manual_seed(0)
    stored, now = torch.randn(2, 40, 6, generator=generator)
    y = torch.randint(6, (40,), generator=generator)
    kept = stored.clone()
    found = rectified(stored, now, y, slice(first, end), 0.85)
    for i in range(40):
        expected = by_loop(kept[i].tolist(), now[i].tolist(), int(y[i]), range(first, end), 0.85)
        assert found[i].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.equal(stored, kept)


def test_the_label_stays_the_largest_where_its_logit_is_positive():
    """The point of γ: new classes may not beat the label."""
    now = torch.tensor([[3.0, 1.0, 9.0, 7.0], [3.0, 1.0, 2.0, 1.0]])
    stored = torch.tensor([[4.0, 1.0, 0.0, 0.0], [4.0, 1.0, 0.0, 0.0]])
    found = rectified(stored, now, torch.tensor([0, 0]), slice(2, None), 0.5)
    assert found.tolist() == [[4, 1, 2, pytest.approx(7 * 2 / 9)], [4, 1, 2, 1]]


@pytest.mark.parametrize("largest", [-6.3e-5, 0.0, 0.0094, 3.0])
def test_it_lowers_the_others_where_its_logit_is_not(largest):
    """The paper's γ z_y / max would multiply by 7,245, infinity, -48.6 and -0.15."""
    stored, now = torch.tensor([[-0.537, 0.0, 0.0]]), torch.tensor([[2.0, largest, largest - 4]])
    found = rectified(stored, now, torch.tensor([0]), slice(1, None), 0.85)
    assert found[0].tolist() == pytest.approx([-0.537, -0.537, -4.537], rel=1e-5)


def in_the_second_task(**flags):
    method, config = tiny_method("xder", buffer_size=12, **flags)
    train(method, config, tasks=1)
    method.augment = method.setup.benchmark.augment.normalise
    task = method.setup.benchmark.tasks[1]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    return method, task


def hinge(pairs: list[tuple[float, float]], m: float) -> float:
    excess = [bad + m - good for bad, good in pairs if bad + m - good > 0]
    return sum(excess) / len(excess) if excess else 0.0


def test_loss_is_the_sum_of_its_terms(monkeypatch):
    method, task = in_the_second_task(minibatch_size=3, alpha=0.3, beta=0.7, eta=0.2, m=0.4)
    slots = torch.tensor([4, 9, 0, 7, 11, 2])
    monkeypatch.setattr(method.buffer, "slots", lambda n: slots[:n])
    batch = next(method.setup.benchmark.batches(task, 0, 4))
    stored = {name: field.clone() for name, field in method.buffer.stored().items()}
    loss = method.loss(batch).item()

    def softmax(z):
        total = sum(map(math.exp, z))
        return [math.exp(v) / total for v in z]

    stream = [method.net(x[None])[0].tolist() for x in batch.x]
    again = [method.net(method.augment(stored["x"][s][None]))[0].tolist() for s in slots]
    labels = stored["y"][slots].tolist()
    entropy = [-math.log(softmax(z[2:4])[y - 2]) for z, y in zip(stream, batch.y.tolist(), strict=True)]
    squares = [(a - b) ** 2 for z, s in zip(again[:3], slots, strict=False)
               for a, b in zip(z, stored["logits"][s].tolist(), strict=True)]  # fmt: skip
    past = [-math.log(softmax(z[:2])[y]) for z, y in zip(again[3:], labels[3:], strict=True)]
    p = [softmax(z[:4]) for z in stream]
    before = hinge([(max(q[:2]), max(q[2:])) for q in p], 0.4)
    to_come = [(max(z[4:]), max(z[2:4])) for z in stream] + [(max(z[4:]), max(z[:2])) for z in again]
    expected = sum(entropy) / 4 + 0.3 * sum(squares) / 18 + 0.7 * sum(past) / 3
    assert loss == pytest.approx(expected + 0.2 * (before + hinge(to_come, 0.4)), rel=1e-4)
    assert before > 0 and hinge(to_come, 0.4) > 0


def test_replayed_samples_are_rectified_at_their_first_replay_and_then_less_often(monkeypatch):
    """The n-th replay rectifies with probability 1/n: 200 first ones always, 600 fourth ones a quarter.

    A binomial share is off by 4.5 standard deviations with probability below 1e-5.
    """
    method, _ = in_the_second_task()
    stored = method.buffer.stored()
    rectified_now = {0: 0, 3: 0}
    for replays, rounds in ((0, 20), (3, 60)):
        for _ in range(rounds):
            slots = torch.arange(10)
            method.buffer.replace(slots, replays=torch.full((10,), replays))
            sample = method.buffer.at(slots)
            method.rectify_some(slots, sample, torch.rand(10, 6), 2)
            changed = (stored["logits"][:10] != sample["logits"]).any(1)
            rectified_now[replays] += int(changed.sum())
            assert torch.equal(stored["logits"][:10, :2], sample["logits"][:, :2]), "its own classes stay"
            assert (stored["replays"][:10] == replays + 1).all()
    assert rectified_now[0] == 200
    assert abs(rectified_now[3] - 150) < 4.5 * math.sqrt(600 * 0.25 * 0.75)


def test_the_memory_holds_rectified_logits_when_a_task_ends():
    method, task = in_the_second_task()
    benchmark, old = method.setup.benchmark, method.buffer.stored()
    old = {int(i): z for i, z in zip(old["index"], old["logits"].tolist(), strict=True)}
    method.end_task(task)
    stored = method.buffer.stored()
    assert stored["y"].bincount(minlength=6).tolist() == [3, 3, 3, 3, 0, 0]
    with torch.no_grad():
        now = method.net(benchmark.augment.normalise(stored["x"])).tolist()
    for i, (index, y) in enumerate(zip(stored["index"].tolist(), stored["y"].tolist(), strict=True)):
        if y < 2:
            expected = by_loop(old[index], now[i], y, range(2, 6), 0.85)
        else:
            expected = by_loop(now[i], now[i], y, range(2), 0.85)
        assert stored["logits"][i].tolist() == pytest.approx(expected, rel=1e-5)
