"""The value, not only the name, of every number that a run logs: by hand, or counted again."""

import mmap
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engram.utils.metrics.measurements import CurvePoint, MemoryCounts
from engram.utils.runs import system_metrics
from engram.utils.runs.record_of_run import record_of
from engram.utils.runs.system_metrics import SystemMetrics
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.environment import Environment
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method
from tests.waiting import TickingClock

NAN = float("nan")
CLASS_IL = [[0.8, 0.0, 0.0], [0.6, 0.9, 0.0], [0.5, 0.7, 1.0]]
TASK_IL = [[0.9, 0.4, 0.3], [0.8, 1.0, 0.5], [0.85, 0.9, 1.0]]
B = [0.5, 0.45, 0.2]
GROUPS = {"high": [[0.2, NAN, NAN], [0.1, 0.6, NAN], [0.3, 0.4, 0.5]],
          "mid": [[NAN, NAN, NAN]] * 3,
          "low": [[1.0, NAN, NAN], [0.9, NAN, NAN], [0.7, NAN, 1.0]]}  # fmt: skip


def filled(scenario: str = "class-il", groups: bool = False) -> AccuracyLog:
    """A log of three tasks, as the trainer fills it."""
    log = AccuracyLog(3, scenario)
    log.b[:] = B
    for row, views in enumerate(zip(CLASS_IL, TASK_IL, strict=True)):
        log.set_row(row, np.array(views).T)
    log.add_point(4, 0, np.array([[0.3, 0.5], [0.9, 0.9]]))  # of tasks not seen yet too
    log.add_point(7, 1, np.array([[0.2, 0.4], [0.1, 0.3]]))
    log.add_point(7, 1, np.array([[0.4, 0.6], [0.5, 0.7]]))  # the one at the end replaces the one before
    log.add_point(9, 2, np.array([[0.6, 0.8], [0.5, 0.9], [1.0, 1.0]]))
    log.memory.append(MemoryCounts(0, [2, 1], [3]))
    if groups:
        matrices = np.array([GROUPS[name] for name in ("high", "mid", "low")])
        for row in range(3):
            accuracies = matrices[:, row, : row + 1].T  # (tasks, groups)
            log.set_groups(
                row, np.stack([accuracies, accuracies / 2], axis=2), np.array([3, 0, 2]) * (row + 1)
            )
    return log


def test_after_the_first_task():
    logged = filled().task_metrics(0)
    assert logged == pytest.approx(
        {"mean_acc_class_il": 80, "acc_class_il_task_0": 80, "forgetting": NAN, "bwt": NAN,
         "mean_acc_task_il": 90, "acc_task_il_task_0": 90,
         "forgetting_mask_classes": NAN, "bwt_mask_classes": NAN,
         "class_il/accuracy": 80, "task_il/accuracy": 90,
         "class_il/forgetting": NAN, "task_il/forgetting": NAN}, nan_ok=True,
    )  # fmt: skip


def test_after_the_second_task():
    assert filled().task_metrics(1) == pytest.approx(
        {"mean_acc_class_il": 75, "acc_class_il_task_0": 60, "acc_class_il_task_1": 90,
         "forgetting": 20, "bwt": -20,
         "mean_acc_task_il": 90, "acc_task_il_task_0": 80, "acc_task_il_task_1": 100,
         "forgetting_mask_classes": 10, "bwt_mask_classes": -10,
         "class_il/accuracy": 75, "task_il/accuracy": 90,
         "class_il/forgetting": 20, "task_il/forgetting": 10},
    )  # fmt: skip


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
def test_after_the_last_task(scenario):
    """Forgetting: ((.8 − .5) + (.9 − .7)) / 2, of task-IL ((.9 − .85) + (1 − .9)) / 2.

    Forward transfer: ((.4 − .45) + (.5 − .2)) / 2, under both names in domain-IL.
    """
    expected = {
        "mean_acc_class_il": 220 / 3, "acc_class_il_task_0": 50, "acc_class_il_task_1": 70,
        "acc_class_il_task_2": 100, "forgetting": 25, "bwt": -25,
        "mean_acc_task_il": 275 / 3, "acc_task_il_task_0": 85, "acc_task_il_task_1": 90,
        "acc_task_il_task_2": 100, "forgetting_mask_classes": 7.5, "bwt_mask_classes": -7.5,
        "fwt_mask_classes": 12.5,
        "class_il/accuracy": 220 / 3, "task_il/accuracy": 275 / 3,
        "class_il/forgetting": 25, "task_il/forgetting": 7.5,
    }  # fmt: skip
    logged = filled(scenario).task_metrics(2)
    assert logged == pytest.approx(expected | ({"fwt": 12.5} if scenario == "domain-il" else {}))
    assert {type(value) for value in logged.values()} == {float}


def test_groups_by_memorization():
    """High: (max(.2, .1) − .3 + .6 − .4) / 2; low: 1 − .7, its second task has no sample."""
    log = filled(groups=True)
    logged, plain = log.task_metrics(2), filled().task_metrics(2)
    own = {name: value for name, value in logged.items() if name not in plain}
    assert own == pytest.approx(
        {"acc_longtail_task_0": 30, "acc_longtail_task_1": 40, "acc_longtail_task_2": 50,
         "forgetting_longtail": 5,
         "acc_mid_mem_task_0": NAN, "acc_mid_mem_task_1": NAN, "acc_mid_mem_task_2": NAN,
         "forgetting_mid_mem": NAN,
         "acc_low_mem_task_0": 70, "acc_low_mem_task_1": NAN, "acc_low_mem_task_2": 100,
         "forgetting_low_mem": 30}, nan_ok=True,
    )  # fmt: skip
    assert log.groups["high"]["task_il"][2].tolist() == [0.15, 0.2, 0.25]
    assert {name: logged[name] for name in plain} == plain


def test_evaluations_inside_tasks():
    log = filled()
    assert log.curve_metrics(1) == [
        (7, {"step_acc_class_il_task_0": 40, "step_acc_class_il_task_1": 50,
             "step_acc_task_il_task_0": 60, "step_acc_task_il_task_1": 70}),
    ]  # fmt: skip
    assert log.curve_metrics(0) == [(4, {"step_acc_class_il_task_0": 30, "step_acc_task_il_task_0": 50})]
    metrics = log.metrics("class_il")
    assert metrics["min_acc"] == pytest.approx((0.4 + 0.5) / 2)
    assert metrics["wc_acc"] == pytest.approx(1.0 / 3 + (1 - 1 / 3) * 0.45)
    log.curve.clear()
    assert {"min_acc", "wc_acc"} & set(log.metrics("class_il")) == set()


def test_the_record_holds_what_was_measured(monkeypatch):
    clock = TickingClock(step=0)
    monkeypatch.setattr(time, "monotonic", clock)
    log = filled(groups=True)
    log.environments = [
        Environment("abc", "cpu", {"torch": "2"}),
        Environment("abc", "cuda:0", {"torch": "3"}, git_dirty=True),
    ]
    log.n_images, log.peak_bytes = 600, 12345
    clock.spend(1)
    with log.timed("train"):
        clock.spend(4)
        with log.timed("eval"):
            clock.spend(2)
    log.add_data_seconds(0.5)
    benchmark = SimpleNamespace(
        class_order=torch.tensor([1, 0, 2]), transforms={"angles": [0.5]}, split_hash="0a1b"
    )
    config = {"seed": 3, "model": "er", "validation": 0.0}
    record = record_of(log, "running", config, benchmark)
    assert (record.status, record.seed, record.scenario, record.config) == ("running", 3, "class-il", config)
    assert record.evaluated_on == "test"
    assert record_of(log, "x", config | {"validation": 10.0}, benchmark).evaluated_on == "validation"
    assert record.class_il.R.tolist() == CLASS_IL and record.task_il.R.tolist() == TASK_IL
    assert record.class_il.metric("forgetting") == pytest.approx(0.25)
    assert record.task_il.metric("forgetting") == pytest.approx(0.075)
    assert record.fwt == pytest.approx(0.125) and record.b == B
    assert record.curve[0] == CurvePoint(4, 0, {"class_il": [0.3], "task_il": [0.5]})
    assert record.curve[1] == CurvePoint(7, 1, {"class_il": [0.4, 0.5], "task_il": [0.6, 0.7]})
    assert record.memory == [MemoryCounts(0, [2, 1], [3])]
    assert record.groups["low"]["class_il"].metrics == {
        "forgetting": pytest.approx(0.3), "n_samples": 6,
    }  # fmt: skip
    assert vars(record.seconds) == {"total": 7.5, "train": 4.0, "eval": 2.0, "data": 0.5}
    assert record.images_per_second == 150 and record.peak_memory_bytes == 12345
    assert (record.device, record.git_commit, record.versions) == ("cpu, cuda:0", "abc", {"torch": "2, 3"})
    assert record.split_hash == "0a1b"
    assert record.git_dirty is True
    assert record.class_order == [1, 0, 2] and record.transforms == {"angles": [0.5]}


def test_what_was_evaluated_in_full_has_no_error():
    log = AccuracyLog(3, "class-il")
    log.set_row(1, np.array([[0.1, 0.2], [0.3, 0.4]]))
    for errors in log.errors.values():
        np.testing.assert_array_equal(errors, [[NAN] * 3, [0, 0, NAN], [NAN] * 3])


def test_a_log_before_any_training_has_no_speed():
    assert AccuracyLog(2, "class-il").images_per_second is None
    assert AccuracyLog(2, "class-il").peak_bytes == 0, "nothing was measured"


def test_a_log_goes_on_from_its_state():
    log, restored = filled(groups=True), AccuracyLog(3, "class-il")
    log.n_images, log.peak_bytes = 600, 12345
    log.environments = [Environment("abc", "cpu", {"torch": "2"}, "fp32", git_dirty=True)]
    restored.load_state_dict(log.state_dict())
    for name in ("curve", "memory", "environments", "n_images", "peak_bytes", "seconds", "group_sizes"):
        assert getattr(restored, name) == getattr(log, name), name
    np.testing.assert_array_equal(restored.b, log.b)
    assert restored.task_metrics(2) == pytest.approx(log.task_metrics(2), nan_ok=True)
    for group, views in log.groups.items():
        for view, R in views.items():
            np.testing.assert_array_equal(restored.groups[group][view], R)


def test_the_memory_is_counted_after_every_task(folder):
    """Again from what it holds: three tasks of two classes, eight samples."""
    method, config = tiny_method("er", buffer_size=8)
    trainer = Trainer(config, method, folder, quiet=True)
    held = []

    def count(row: int) -> None:
        stored = method.buffer.stored()
        labels, tasks = stored["y"].tolist(), stored["task_id"].tolist()
        held.append(
            MemoryCounts(row, [labels.count(c) for c in range(6)], [tasks.count(t) for t in range(3)])
        )

    trainer.on_task = count
    log = trainer.run()
    assert log.memory == held and sum(held[-1].per_class) == 8 and held[0].per_task == [8, 0, 0]


def test_what_a_run_takes_of_the_machine(monkeypatch):
    """Five CPU seconds in two seconds of time are two and a half cores."""
    clock, times = TickingClock(step=0), SimpleNamespace(user=1.0, system=0.5)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(system_metrics.os, "times", lambda: times)
    monkeypatch.setattr(system_metrics, "_resident_bytes", lambda: 250_000_000)
    usage = SystemMetrics(torch.device("cpu"))
    for _ in range(2):  # since the last call, not since the start
        clock.spend(2)
        times = SimpleNamespace(user=times.user + 4, system=times.system + 1)
        assert usage.measure() == {
            "system/process_memory_usage_megabytes": 250, "system/cpu_utilization_percentage": 250
        }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3_000_000 * (device.index + 1))
    usage.device = torch.device("cuda:1")
    assert usage.measure()["system/gpu_1_memory_usage_megabytes"] == 6


def test_resident_memory_is_that_of_this_process():
    before = system_metrics._resident_bytes()
    with mmap.mmap(-1, 200_000_000) as held:  # new pages, and none that a freed tensor has left behind
        held.write(bytes(len(held)))
        assert system_metrics._resident_bytes() - before > 0.9 * len(held)


def test_numbers_on_validation_data_have_names_of_their_own():
    """A column of MLflow's table, or a chart, never holds both kinds."""
    test, held_out = filled(groups=True), filled(groups=True)
    held_out.prefix = AccuracyLog(3, "class-il", validation=True).prefix
    for row in range(3):
        of_test = [test.task_metrics(row), *(values for _, values in test.curve_metrics(row))]
        of_held_out = [held_out.task_metrics(row), *(values for _, values in held_out.curve_metrics(row))]
        for plain, named in zip(of_test, of_held_out, strict=True):
            assert named == pytest.approx({f"validation_{k}": v for k, v in plain.items()}, nan_ok=True)
    for log in (held_out, test):
        assert all(name in log.task_metrics(0) for name in log.mean_names)
