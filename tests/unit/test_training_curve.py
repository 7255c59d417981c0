"""The training curve: sparse, right, the same after a resume, sent while a task is at work."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from engram.utils.metrics.measurements import measures_machine
from engram.utils.runs import recorder
from engram.utils.runs.recorder import Recorder
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.training_curve import MAX_POINTS, TrainingCurve, TrainingPoint
from tests.waiting import TickingClock


def optimizer(lr: float) -> SimpleNamespace:
    return SimpleNamespace(param_groups=[{"lr": lr}])


def test_a_point_holds_the_mean_loss_the_rate_the_speed_and_the_time(monkeypatch):
    """Points after steps 3, 6 and the last, 7; 1 s of the run was data, 0.5 s evaluation."""
    clock = TickingClock(step=0)
    monkeypatch.setattr(recorder.time, "monotonic", clock)
    log, n_points = AccuracyLog(2, "class-il"), []
    log.on_point = lambda: n_points.append(len(log.training.points))
    log.training.every, log.training.n_steps = 3, 7
    with log.timed("data"):
        clock.spend(1)
    with log.timed("train"):
        clock.spend(1)
        log.n_images = 100
        log.add_losses(2, [4.0, 3.0], optimizer(0.1))
        assert n_points == []  # two of three steps
        with log.timed("eval"):
            clock.spend(0.5)
        clock.spend(1)
        log.n_images = 300
        log.add_losses(4, [2.0, 1.0], optimizer(0.05))
        clock.spend(4)
        log.n_images = 400
        log.add_losses(7, [1.0, 4.0, 7.0], None)
    first, second, third = log.training.points
    assert n_points == [1, 3]
    assert first == TrainingPoint(step=3, loss=3.0, lr=0.05, images_per_second=200.0, seconds=3.5)
    assert (second.step, second.loss, second.images_per_second, second.seconds) == (6, 2.0, 25.0, 7.5)
    assert math.isnan(second.lr)  # of a method without an optimizer
    assert replace(third, lr=0) == replace(second, lr=0, step=7, loss=7.0)
    assert first.metrics() == (
        3,
        {"training/loss": 3.0, "training/lr": 0.05, "training/images_per_second": 200.0,
         "training/seconds": 3.5},
    )  # fmt: skip


def test_speed_and_time_are_what_equal_runs_do_not_share():
    names = TrainingPoint(1, 1.0, 0.1, 10.0, 2.0).metrics()[1]
    assert [name for name in names if measures_machine(name)] == [
        "training/images_per_second",
        "training/seconds",
    ]
    assert measures_machine("system/process_memory_usage_megabytes")
    assert not any(map(measures_machine, ("mean_acc_class_il", "class_il/forgetting", "n")))


@pytest.mark.parametrize("n_steps", [1, 99, 100, 101, 12345])
def test_a_run_has_few_points_the_last_at_its_end(n_steps):
    curve = TrainingCurve()
    curve.plan(n_steps)
    for step in range(1, n_steps + 1):
        curve.add(step, [1.0], 0.1, step, step, step)
    assert min(n_steps, MAX_POINTS // 2) <= len(curve.points) <= MAX_POINTS + 1
    assert curve.points[-1].step == n_steps


def curve_of(losses: list[float], read_at: list[int], resumed_at: int | None = None) -> list[tuple]:
    """(step, loss, rate) of a run whose losses are read after these steps, and that may be resumed there."""
    log = AccuracyLog(2, "class-il")
    log.training.plan(len(losses))
    for begin, end in zip([0, *read_at], read_at, strict=False):
        log.add_losses(end, losses[begin:end], optimizer(0.1))
        if end == resumed_at:
            saved = json.loads(json.dumps(log.state_dict()))
            log = AccuracyLog(2, "class-il")
            log.load_state_dict(saved)
            log.training.plan(len(losses))
    return [(point.step, point.loss, point.lr) for point in log.training.points]


def test_the_points_do_not_depend_on_when_losses_are_read_or_the_run_is_resumed():
    losses = np.random.default_rng(0).lognormal(size=1234).tolist()
    whole = curve_of(losses, [1234])
    assert [step for step, *_ in whole] == [*range(13, 1234, 13), 1234]
    assert whole[1][1] == pytest.approx(np.mean(losses[13:26])) and whole[-1][1] == pytest.approx(
        np.mean(losses[1222:])
    )
    assert curve_of(losses, [*range(1, 1235)]) == whole
    assert curve_of(losses, [5, 40, 700, 1234], resumed_at=700) == whole  # in the middle of a point


def test_a_resumed_run_measures_its_speed_from_where_it_goes_on():
    log = AccuracyLog(2, "class-il")
    log.n_images, log.seconds["train"] = 200, 4.0
    log.add_losses(5, [1.0], None)
    restored = AccuracyLog(2, "class-il")
    restored.load_state_dict(json.loads(json.dumps(log.state_dict())))
    restored.training.add(6, [2.0], 0.1, 260, 6.0, 9.0)
    assert restored.training.points[1] == TrainingPoint(6, 2.0, 0.1, 30.0, 9.0)
    assert [step for step, _ in restored.training.not_in({5})] == [6]


def test_a_checkpoint_of_before_there_was_a_curve_can_be_resumed():
    log = AccuracyLog(2, "class-il")
    saved = {name: value for name, value in log.state_dict().items() if name != "training"}
    log.load_state_dict(saved)
    assert log.training.points == []


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
