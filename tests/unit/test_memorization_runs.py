"""Which finished runs the figures and the table of interventions take, and which they refuse to average."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from engram.memorization import intervention, plots
from engram.memorization.runs import finished_runs
from engram.utils.errors import UserError
from engram.utils.runs.run_record import RunRecord
from tests.unit.stored_records import stored_record


def record(seed: int, accuracy: float = 0.5, **flags) -> RunRecord:
    config = {"dataset": "seq-digits", "model": "er", "buffer_size": 50, "exclude": None, "seed": seed}
    return stored_record(config | flags, accuracy=accuracy)


def write(folder: Path, **records: RunRecord) -> None:
    for name, written in records.items():
        (folder / name).mkdir(parents=True)
        written.write(folder / name / "results.json")


def test_runs_on_validation_data_are_left_out_and_counted(tmp_path, capsys):
    write(
        tmp_path, a=record(0, 0.8), b=record(1, 0.6), tried=replace(record(0, 0.1), evaluated_on="validation")
    )
    assert [r.class_il.metric("average_accuracy") for r in finished_runs(tmp_path, "--runs")] == [0.8, 0.6]
    assert capsys.readouterr().err == "left out: 1 run evaluated on validation data\n"
    write(tmp_path, tried_too=replace(record(1, 0.1), evaluated_on="validation"))
    assert len(finished_runs(tmp_path, "--runs")) == 2
    assert capsys.readouterr().err == "left out: 2 runs evaluated on validation data\n"
    intervention.run(["--results", str(tmp_path)])
    with pytest.raises(UserError, match=f"--runs {tmp_path}/tried: no finished run there on test data"):
        finished_runs(tmp_path / "tried", "--runs")


def test_two_runs_of_a_seed_are_refused_by_their_folders(tmp_path):
    write(tmp_path, a=record(0), b=record(1), again=record(0), larger=record(0, buffer_size=100))
    said = f"{tmp_path}/a and {tmp_path}/again are two runs of seed 0 of one setting; remove one"
    with pytest.raises(UserError, match=re.escape(f"--runs: {said}")):
        plots.run(["--runs", str(tmp_path), "--out_dir", str(tmp_path / "figures")])
    with pytest.raises(UserError, match=re.escape(f"--results: {said}")):
        intervention.run(["--results", str(tmp_path)])


def test_passes_that_no_run_counted_tell_none_apart(tmp_path):
    write(tmp_path, a=record(0, n_iters=10, n_epochs=1), b=record(1, n_iters=10, n_epochs=5))
    assert len(finished_runs(tmp_path, "--runs")) == 2
    intervention.run(["--results", str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "said"),
    [({"lr": 0.5}, "--lr (0.1, 0.5)"), ({"exclude": "top_10.npz"}, "--exclude (None, top_10.npz)")],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(tmp_path, flags, said):
    write(
        tmp_path, a=record(0, lr=0.1), b=record(1, lr=0.1, device="cpu"), c=record(2, **{"lr": 0.1, **flags})
    )
    said = f"{tmp_path}/a and {tmp_path}/c belong to one setting, but differ in more than the seed: {said}; "
    with pytest.raises(UserError, match=re.escape(said)):
        finished_runs(tmp_path, "--runs")


@pytest.mark.parametrize(
    "flags", [{"ignore_other_metrics": True}, {"eval_every": 100}, {"savecheck": "last"}], ids=str
)
def test_what_is_measured_besides_may_differ(tmp_path, flags):
    write(tmp_path, a=record(0), b=record(1, **flags))
    assert len(finished_runs(tmp_path, "--runs")) == 2


def test_the_scenario_is_one_of_the_flags(tmp_path):
    write(tmp_path, a=record(0), b=replace(record(1), scenario="task-il"))
    with pytest.raises(UserError, match=re.escape("--scenario (class-il, task-il)")):
        finished_runs(tmp_path, "--runs")


def test_what_the_caller_tells_apart_may_differ(tmp_path):
    top, random = (record(0, exclude=f"f/{name}.npz") for name in ("top_10", "random_10_0"))
    write(tmp_path, whole=record(0), top=top, random=random)
    assert len(finished_runs(tmp_path, "--results", told_apart=("exclude",))) == 3
    write(tmp_path, again=top)
    with pytest.raises(UserError, match=f"{tmp_path}/again and {tmp_path}/top are two runs of seed 0"):
        finished_runs(tmp_path, "--results", told_apart=("exclude",))


def test_settings_that_the_figures_tell_apart_are_kept(tmp_path):
    more = {"model": "maer", "buffer_policy": "min"}
    others = {
        "proxy": record(0, mem_proxy="loss", **more), "other": record(0, mem_proxy="given", **more),
        "balanced": record(0, memory="balanced"), "joint": record(0, model="joint"),
        "mnist": record(0, dataset="seq-mnist", lr=0.7),
    }  # fmt: skip
    write(tmp_path, a=record(0), **others)
    assert len(finished_runs(tmp_path, "--runs")) == 6


def test_copies_of_the_tracker_are_no_runs_of_their_own(tmp_path):
    write(tmp_path, a=record(0))
    write(tmp_path / "mlruns", artifacts=record(0))
    assert len(finished_runs(tmp_path, "--runs")) == 1


def test_flags_that_an_imported_log_does_not_mention_are_not_compared(tmp_path):
    logged = {"imported_run": "ab"}
    write(tmp_path, a=replace(record(0), **logged), b=replace(record(1, lr=0.1), **logged))
    assert len(finished_runs(tmp_path, "--runs")) == 2
    write(tmp_path, c=replace(record(2, memory="reservoir"), **logged), d=replace(record(2), **logged))
    with pytest.raises(UserError, match="are two runs of seed 2"):
        finished_runs(tmp_path, "--runs")
