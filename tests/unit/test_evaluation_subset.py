"""Evaluations of some tasks and some samples: what is measured, what it is called, what stays as it was."""

import math

import numpy as np
import pytest
import torch

from engram import main as program
from engram.datasets import benchmark as benchmarks
from engram.models.sgd import SGD
from engram.utils import checkpoint
from engram.utils.config.cli import parse
from engram.utils.config.options import OptionError
from engram.utils.metrics.measurements import VIEWS, CurvePoint
from engram.utils.runs import pending
from engram.utils.runs.record_of_run import record_of
from engram.utils.runs.run_record import RunRecord
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.evaluation import accuracies
from engram.utils.training.evaluation_subset import draw_subset
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_benchmark, tiny_config, tiny_method

T, PER_TASK = 6, 30


def learned(folder, **flags) -> Trainer:
    """The run of sgd over six permutations of 30 test images."""
    method, config = tiny_method("sgd", "domain-il", n_tasks=T, **flags)
    trainer = Trainer(config, method, folder, quiet=True)
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return learned(tmp_path_factory.mktemp("whole"), eval_every=7).results


def test_some_tasks_have_the_accuracies_that_all_would(whole, folder):
    part = learned(folder, eval_tasks=2, eval_every=7).results
    full, R = whole.R["task_il"], part.R["task_il"]
    measured = ~np.isnan(R)
    assert (R[measured] == full[measured]).all() and measured[-1].all()
    for i in range(T - 1):
        assert measured[i, i] and measured[i, i + 1] and not measured[i, i + 2 :].any()
        assert measured[i, :i].sum() == min(2, i)
    assert (part.b == whole.b).all() and (part.errors["task_il"][measured] == 0).all()
    before, after = whole.metrics("task_il"), part.metrics("task_il")
    for name in ("average_accuracy", "learning_accuracy", "bwt", "bti"):
        assert after[name] == before[name]
    assert part.forward_transfer == whole.forward_transfer
    assert after["forgetting"] <= before["forgetting"] and after["fm"] <= before["fm"]
    assert math.isnan(after["average_incremental_accuracy"]) and math.isnan(after["min_acc"])
    inside = [np.isnan(point.accuracies["task_il"]).sum() for point in part.curve if point.task == 4]
    assert set(inside) == {2}, "two of four earlier tasks and the one in training"


def test_the_earlier_tasks_are_drawn_anew_each_time():
    config, tasks = (
        tiny_config(n_tasks=40, eval_tasks=3),
        tiny_benchmark(tiny_config(n_tasks=40), "domain-il").tasks,
    )
    earlier = [np.flatnonzero(draw_subset(tasks, config, n, n).counts)[:-1] for n in range(4, 40)]
    assert all(len(chosen) == 3 for chosen in earlier)
    assert len(set(np.concatenate(earlier))) > 30


def test_some_samples_are_the_same_each_time_and_have_a_standard_error(whole, folder):
    trainer = learned(folder, eval_samples=10)
    R, errors = trainer.results.R["task_il"], trainer.results.errors["task_il"]
    assert np.allclose((10 * R[:-1]).round(), 10 * R[:-1]) and (R[-1] == whole.R["task_il"][-1]).all()
    expected = np.sqrt(R[:-1] * (1 - R[:-1]) / 9 * (1 - 10 / PER_TASK))
    np.testing.assert_allclose(errors[:-1], expected, rtol=1e-12)
    assert (errors[-1] == 0).all()
    tasks, config = trainer.benchmark.tasks, trainer.config
    first, later = (draw_subset(tasks, config, n, T).positions for n in (2, 5))
    assert torch.equal(first, later) and first.bincount(minlength=T * PER_TASK).max() == 1
    other = draw_subset(tasks, tiny_config(eval_samples=10, seed=1), 2, T).positions
    assert not torch.equal(first, other)


def test_the_untrained_network_is_measured_on_the_same_samples(folder, monkeypatch):
    n_images, predict = [], SGD.predict
    monkeypatch.setattr(SGD, "predict", lambda self, x, t: n_images.append(len(x)) or predict(self, x, t))
    trainer = learned(folder, eval_samples=10)
    assert sum(n_images) == T * 10 * T + T * PER_TASK, "b and all rows of R but the last are of ten each"
    method, config = tiny_method("sgd", "domain-il", n_tasks=T, eval_samples=10)
    test, b = method.benchmark.test(T), trainer.results.b
    chosen = draw_subset(method.benchmark.tasks, config, 2, T).positions
    with torch.no_grad():
        logits = method.predict(method.benchmark.augment.normalise(test.x_raw[chosen]), test.task_id[chosen])
    hits = (logits.argmax(1) == test.y[chosen]).view(T, 10)
    np.testing.assert_array_equal(b, hits.double().mean(1))


def test_the_accuracy_of_a_subset_is_counted_sample_by_sample():
    method, config = tiny_method("sgd", eval_samples=7)
    subset = draw_subset(method.benchmark.tasks, config, 2, 3)
    test = method.benchmark.test(3)
    x = method.benchmark.augment.normalise(test.x_raw)
    with torch.no_grad():
        logits = method.predict(x, test.task_id)
    hits = logits[:, :4].argmax(1) == test.y  # the best of the classes of two tasks
    chosen = subset.positions.tolist()
    expected = [sum(hits[p].item() for p in chosen if test.task_id[p] == task) / 7 for task in range(3)]
    assert accuracies(method, 3, 2, subset)[:, 0].tolist() == pytest.approx(expected)
    assert subset.counts.tolist() == [7, 7, 7]
    of_tasks = [{p % 10 for p in chosen if test.task_id[p] == task} for task in range(3)]
    assert len(set(map(frozenset, of_tasks))) == 3, "each task draws its own"


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_chunks_at_positions_are_rows_of_the_stack(monkeypatch, limit):
    stream = tiny_benchmark(tiny_config(n_tasks=T), "domain-il")
    stack = stream.test(T)
    monkeypatch.setitem(benchmarks.STACK_BYTES, "cpu", limit)
    positions = torch.tensor([0, 3, 29, 30, 95, 120, 121, 179])
    for chosen in (positions, None):
        rows = torch.arange(T * PER_TASK) if chosen is None else chosen
        chunks = list(stream.test_chunks(T, 3, chosen))
        assert [len(chunk.y) for chunk in chunks][:-1] == [3] * ((len(rows) - 1) // 3)
        for name in ("x_raw", "y", "task_id", "index"):
            got = torch.cat([getattr(chunk, name) for chunk in chunks])
            assert torch.equal(got, getattr(stack, name)[rows])


def test_one_task_has_no_standard_error():
    with pytest.raises(OptionError, match="--eval_tasks 1: a standard error takes two tasks"):
        parse(["--model", "sgd", "--eval_tasks", "1"])


# --- names, files ---------------------------------------------------------------------------------


def test_estimates_have_names_of_their_own_and_the_last_row_has_the_usual_ones(folder):
    log = learned(folder, eval_tasks=2, eval_samples=10).results
    for row in range(T - 1):
        logged = log.task_metrics(row)
        assert all(name.startswith("sampled_") for name in logged)
        for view in VIEWS:
            mean, error = log.mean_of_seen(view, row)
            assert logged[f"sampled_mean_acc_{view}"] == 100 * mean
            assert logged[f"sampled_stderr_mean_acc_{view}"] == 100 * error
            R, errors = log.R[view][row], log.errors[view][row]
            names = [(f"sampled_acc_{view}_task_", R), (f"sampled_stderr_acc_{view}_task_", errors)]
            for name, values in names:
                got = [logged[f"{name}{k}"] for k in range(row + 1)]
                np.testing.assert_array_equal(got, 100 * values[: row + 1])
                assert f"{name}{row + 1}" not in logged, "nothing of tasks not seen yet"
    last = log.task_metrics(T - 1)
    assert last["mean_acc_class_il"] == 100 * log.R["class_il"][-1].mean()
    assert not any(name.startswith("sampled_") for name in last)
    assert log.mean_names == ("mean_acc_class_il", "sampled_mean_acc_class_il")
    assert AccuracyLog(2, "class-il").mean_names == ("mean_acc_class_il",)


def test_files_and_checkpoints_keep_what_was_estimated(folder):
    trainer = learned(folder, eval_tasks=2, eval_samples=10, eval_every=7)
    log = trainer.results
    record_of(log, "finished", trainer.config.flat(), trainer.benchmark).write(folder / "results.json")
    read = RunRecord.read(folder)
    restored = AccuracyLog(T, "domain-il", sampled=True)
    restored.load_state_dict(checkpoint.read(folder / "checkpoint.pt")["results"])
    for other in (pending.accuracy_log(read), restored):
        for row in range(T):
            np.testing.assert_equal(other.task_metrics(row), log.task_metrics(row))
            np.testing.assert_equal(other.curve_metrics(row), log.curve_metrics(row))
    assert set(read.standard_errors) == set(VIEWS)


def test_a_run_without_the_flags_has_no_standard_errors_in_its_file(whole, folder):
    method, config = tiny_method("sgd", "domain-il", n_tasks=T)
    document = record_of(whole, "finished", config.flat(), method.benchmark).to_json()
    assert "standard_errors" not in document


def test_a_point_of_the_curve_keeps_what_was_not_measured():
    point = CurvePoint.from_json({"step": 1, "task": 1, "class_il": [None, 0.5], "task_il": [0.25, None]})
    np.testing.assert_equal(point.accuracies, {"class_il": [math.nan, 0.5], "task_il": [0.25, math.nan]})


def test_the_program_says_mean_and_standard_error(folder, capsys):
    flags = "--model sgd --dataset seq-digits --n_iters 3 --eval_tasks 2 --eval_samples 50".split()
    assert program.main([*flags, "--disable_log", "--output_dir", str(folder)]) == 0
    said = capsys.readouterr()
    (path,) = folder.rglob("results.json")
    record = RunRecord.read(path)
    R, E = record.task_il.R, record.standard_errors["task_il"]
    lines = [line for line in (said.out + said.err).splitlines() if "after task" in line]
    assert len(lines) == 5 and "±" not in lines[-1]
    mean, error = pending.accuracy_log(record).mean_of_seen("task_il", 3)
    told = f"task-IL {100 * mean:.1f} ± {100 * error:.1f} % (± standard error; 3 of 4 tasks evaluated)"
    assert lines[3].endswith(told)
    assert np.nanmax(E) > 0 and np.isnan(R).any()
