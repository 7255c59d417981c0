"""The training curve: sparse, right, resumed without a gap, sent while a task is at work."""

import json
import math
from types import SimpleNamespace

import pytest

from engram.utils.runs import recorder
from engram.utils.runs.recorder import Recorder
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.training_curve import MAX_POINTS, TrainingCurve, TrainingPoint
from tests.waiting import TickingClock


def optimizer(lr: float) -> SimpleNamespace:
    return SimpleNamespace(param_groups=[{"lr": lr}])


def test_a_point_holds_the_mean_loss_the_rate_the_speed_and_the_time(monkeypatch):
    """300 images in 2 s of training; 1 s of the run was data, 0.5 s evaluation."""
    clock = TickingClock(step=0)
    monkeypatch.setattr(recorder.time, "monotonic", clock)
    log, points = AccuracyLog(2, "class-il"), []
    log.on_point = lambda: points.append(len(log.training.points))
    log.training.every = 3
    with log.timed("data"):
        clock.spend(1)
    with log.timed("train"):
        clock.spend(1)
        log.n_images = 100
        log.add_losses(2, [4.0, 3.0], optimizer(0.1))
        assert points == []  # two of three steps
        with log.timed("eval"):
            clock.spend(0.5)
        clock.spend(1)
        log.n_images = 300
        log.add_losses(4, [2.0, 1.0], optimizer(0.05))
        clock.spend(4)
        log.n_images = 400
        log.add_losses(7, [1.0, 1.0, 4.0], None)
    first, second = log.training.points
    assert first == TrainingPoint(4, 2.5, 0.05, 150.0, 3.5) and points == [1, 2]
    assert (second.step, second.loss, second.images_per_second, second.seconds) == (7, 2.0, 25.0, 7.5)
    assert math.isnan(second.learning_rate)  # of a method without an optimizer
    assert first.metrics() == (
        4, {"training/loss": 2.5, "training/learning_rate": 0.05, "training/images_per_second": 150.0,
            "training/seconds": 3.5},
    )  # fmt: skip


@pytest.mark.parametrize("n_steps", [1, 99, 100, 101, 12345])
def test_a_run_has_few_points(n_steps):
    curve = TrainingCurve()
    curve.plan(n_steps)
    for step in range(1, n_steps + 1):
        if curve.add([1.0]):
            curve.make_point(step, 0.1, step, step, step)
    assert min(n_steps, MAX_POINTS // 2) <= len(curve.points) <= MAX_POINTS


def test_a_resumed_run_goes_on_with_the_curve():
    log = AccuracyLog(2, "class-il")
    log.n_images, log.seconds["train"] = 200, 4.0
    log.add_losses(5, [1.0], None)
    restored = AccuracyLog(2, "class-il")
    restored.load_state_dict(json.loads(json.dumps(log.state_dict())))
    assert restored.training.points[0].step == 5
    restored.training.add([2.0])
    restored.training.make_point(6, 0.1, 260, 6.0, 9.0)
    assert restored.training.points[1] == TrainingPoint(6, 2.0, 0.1, 30.0, 9.0)
    assert [step for step, _ in restored.training.not_in({5})] == [6]
    old = {name: value for name, value in log.state_dict().items() if name != "training"}
    restored.load_state_dict(old)  # a checkpoint of before there was a curve
    assert restored.training.points == []


def test_a_long_task_shows_something_before_its_end(monkeypatch):
    clock, sent = TickingClock(step=0), []
    monkeypatch.setattr(recorder.time, "monotonic", clock)
    log = AccuracyLog(1, "class-il")
    of_run = SimpleNamespace(
        trainer=SimpleNamespace(results=log), tracker=SimpleNamespace(log_history=sent.append),
        logged_points=set(), _sent=clock(),
    )  # fmt: skip
    of_run._new_points = lambda: Recorder._new_points(of_run)
    log.on_point = lambda: Recorder.after_point(of_run)
    for step in range(1, 5):
        log.add_losses(step, [1.0 / step], optimizer(0.1))
        clock.spend(recorder.SEND_SECONDS * 0.6)
    assert [[step for step, _ in rows] for rows in sent] == [[1, 2, 3]]
    assert [step for step, _ in of_run._new_points()] == [4]  # what the end of the task sends
