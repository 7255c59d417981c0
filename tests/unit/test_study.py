"""Studies: what a file or a command line stands for, what is known of its runs, what they cost."""

import os
import shlex

import numpy as np
import pytest
import yaml

from engram.scripts import sweep as program
from engram.utils.config.cli import parse
from engram.utils.config.run_key import command_line_of, run_key
from engram.utils.errors import UserError
from engram.utils.metrics.measurements import VIEWS
from engram.utils.runs.resume import open_or_create
from engram.utils.runs.run_record import RunRecord, Seconds, ViewResult
from engram.utils.sweeps.run_index import RunIndex, path_of_new_run
from engram.utils.sweeps.sweep import Sweep, duration, preload, reason
from engram.utils.sweeps.sweep_spec import SweepSpec, read_spec

FIXED = ["--", "--dataset", "seq-digits", "--disable_log"]


def labels(*argv: str) -> list[str]:
    _, study = program.parse(list(argv))
    return [run.label for run in study.resolved()]


def test_a_grid_is_every_combination_in_order():
    found = labels("--model", "maer", "er", "--buffer_size", "500", "2000", "--seed", "0", "1", *FIXED)
    assert found[:3] == [
        "maer, buffer_size 500, seed 0", "maer, buffer_size 500, seed 1", "maer, buffer_size 2000, seed 0",
    ]  # fmt: skip
    assert len(found) == 8 and found[-1] == "er, buffer_size 2000, seed 1"


def test_a_list_of_runs_each_with_the_grid(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(
        "fixed: {dataset: seq-digits, hidden_sizes: [32, 16]}\n"
        "grid: {seed: [0, 1]}\n"
        "runs: [{model: sgd}, {model: er, buffer_size: 50}]\n"
    )
    runs = read_spec(path).resolved()
    assert [run.label for run in runs] == [
        "sgd, seed 0", "sgd, seed 1", "er, buffer_size 50, seed 0", "er, buffer_size 50, seed 1",
    ]  # fmt: skip
    assert {run.config.architecture.hidden_sizes for run in runs} == {(32, 16)}
    assert read_spec(path).name == "two"


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("fixed: {dataset: seq-digits, n_epochs: 3}\ngrid: {model: [er, sgd], seed: [0, 1]}\n")
    _, study = program.parse([str(path), "--seed", "7", "--", "--n_epochs", "2", "--model", "er"])
    (run,) = study.resolved()
    assert (run.config.run.seed, run.config.train.n_epochs, run.config.run.model) == (7, 2, "er")
    assert run.config.run.output_dir == "runs/s" and run.config.log.experiment_name == "s"


def test_a_study_is_read_back_as_it_was_written(tmp_path):
    _, study = program.parse(["--model", "er", "--seed", "0", "1", "--name", "x", *FIXED])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study.document()))
    assert [run.key for run in read_spec(path).resolved()] == [run.key for run in study.resolved()]


def test_the_same_computation_is_one_run():
    """Spelled out or by default, under whatever name and wherever it runs."""
    runs = SweepSpec(
        runs=(
            {"model": "er"},
            {"model": "er", "n_epochs": 5, "run_name": "again", "device": "cpu", "num_threads": 2},
            {"model": "er", "lr": 0.2},
        )
    ).resolved()
    assert len(runs) == 2


def test_commands_run_the_same_configuration():
    for flags in (["--model", "er", "--n_tasks", "2"], ["--model", "ewc", "--multi_head", "--lr", "0.03"]):
        config = parse([*flags, "--dataset", "seq-digits"]).config
        written = command_line_of(config.flat())
        assert written.startswith("python main.py --model=")
        assert run_key(parse(shlex.split(written)[2:]).config.flat()) == run_key(config.flat())


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--model", "er", "--sed", "0", "1"], "seed"),
        (["--model", "er", "mare"], "did you mean maer"),
        (["--model", "er", "--resume", "x"], "cannot set --resume"),
        (["--model", "er", "--seed", "0", "--seed", "1"], "given twice"),
        (["missing.yaml"], "cannot be read"),
        (["--model", "er", "--", "--seed", "0", "1"], "one value is expected after --"),
        (
            ["--model", "sgd", "er", "--buffer_size", "5"],
            "model sgd: .*unknown (argument|flag) --buffer_size",
        ),
        (["--model", "er", "--jobs", "0"], "--jobs 0: must be >= 1"),
        (["--model", "er", "--seed", "--disable_log"], "--seed: its value is missing"),
        (["--model", "er", "--permute_classes", "--", "--lr"], "--lr: its value is missing"),
    ],
)
def test_bad_studies(argv, message, capsys, monkeypatch):
    import re

    monkeypatch.setattr(program.process_pool, "start_server", lambda preload: None)
    assert program.main([*argv]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and err.startswith("error: ")


@pytest.mark.parametrize(
    "text, message",
    [
        ("gird: {seed: [0]}", "unknown key 'gird'; did you mean grid"),
        ("[1, 2]", "YAML file, a mapping with"),
        ("grid: {seed: []}", "seed has an empty list"),
        ("grid: {seed: [0]}\nruns: [{seed: 1}]", "both in the grid and in the list"),
        ("runs: {model: er}", "runs must be a list"),
        ("a: [", "not a YAML file: .* in line 2; expected"),
    ],
)
def test_bad_study_files(text, message, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_spec(path)


def fake_run(
    folder, flags: dict, status: str = "finished", seconds: float = 10.0, tracking: str = "", **fields: str
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(flags))
    views = {view: ViewResult(np.array([[0.5]]), {}) for view in VIEWS}
    record = RunRecord(flags, status, views, seconds=Seconds(total=seconds), **fields)
    record.write(folder / "results.json")
    if tracking:
        (folder / "mlflow_run").write_text(tracking)


@pytest.fixture
def study(tmp_path):
    _, made = program.parse(
        ["--model", "er", "--seed", "0", "1", "2", "3", "--output_dir", str(tmp_path), *FIXED]
    )
    return made.resolved()


def test_the_index_finds_runs_by_configuration_not_by_name(study, tmp_path):
    flags = study[0].config.flat()
    fake_run(tmp_path / "seq-digits" / "er" / "by-hand", flags | {"run_name": "mine", "data_dir": "/there"})
    old = {name: value for name, value in study[1].config.flat().items() if name != "eval_every"}
    fake_run(tmp_path / "seq-digits" / "er" / "before-that-flag", old)
    fake_run(tmp_path / "seq-digits" / "er" / "half", study[2].config.flat(), status="running")
    fake_run(tmp_path / "seq-digits" / "er" / "other", flags | {"lr": 0.7})
    fake_run(tmp_path / "seq-digits" / "er" / "unreadable", flags | {"no_such_flag": 1})
    sweep = Sweep(study, RunIndex({str(tmp_path)}))
    assert [sweep.state(run) for run in study] == ["finished", "finished", "begun", "new"]
    assert [run.config.run.seed for run in sweep.open] == [2, 3], "begun ones first"
    assert sweep.paths[study[2].key].name == "half"
    assert sweep.paths[study[3].key] == path_of_new_run(study[3])


CPU, CUDA = "cpu (x86_64, 2 threads)", "cuda:0 (NVIDIA H100)"


@pytest.mark.parametrize(
    ("flag", "used", "device", "answers"),
    [
        ("fp32", None, CPU, "auto fp32"),  # of before `auto`, when fp32 was the default
        ("fp32", None, CUDA, "auto fp32"),
        ("bf16", None, CPU, "bf16"),
        ("auto", "fp32", CPU, "auto fp32"),
        ("auto", "tf32", CUDA, "auto tf32"),
        ("fp32", "fp32", CPU, "auto fp32"),
        ("fp32", "fp32", CUDA, "fp32"),  # asked for beside auto's tf32
        ("tf32", "tf32", CUDA, "auto tf32"),
        ("bf16", "bf16", CPU, "bf16"),
        ("auto", "fp32, tf32", "cpu, cuda:0", "auto"),  # begun on one device, finished on another
    ],
)
def test_a_finished_run_answers_every_request_for_what_it_computed(
    study, tmp_path, flag, used, device, answers
):
    flags, fields = study[0].config.flat(), {"device": device, "precision": used}
    fake_run(tmp_path / "seq-digits" / "er" / "a", flags | {"precision": flag}, **fields)
    index = RunIndex({str(tmp_path)})
    finished = [p for p in ("auto", "bf16", "fp32", "tf32") if index.find(run_key(flags | {"precision": p}))]
    assert finished == answers.split()


def test_a_begun_run_is_continued_in_the_precision_of_before_auto_and_else_by_its_own_name(study, tmp_path):
    flags = [run.config.flat() | {"precision": "fp32"} for run in study]
    fake_run(tmp_path / "seq-digits" / "er" / "old", flags[0], "running", device=CUDA)
    fake_run(tmp_path / "seq-digits" / "er" / "new", flags[1], "running", device=CPU, precision="fp32")
    sweep = Sweep(study, RunIndex({str(tmp_path)}))
    assert [sweep.state(run) for run in study[:2]] == ["begun", "new"]
    config, _ = open_or_create(sweep.paths[study[0].key], study[0].config.flat())
    assert config.run.precision == "fp32", "auto would be tf32 on the device that it was begun on"


def test_of_runs_that_answer_a_request_the_one_that_was_asked_for_so_counts(study, tmp_path):
    flags, computed = study[0].config.flat(), {"device": CPU, "precision": "fp32"}
    fake_run(tmp_path / "seq-digits" / "er" / "b", flags, **computed)
    fake_run(tmp_path / "seq-digits" / "er" / "c", flags | {"precision": "fp32"}, **computed)
    fake_run(tmp_path / "seq-digits" / "er" / "a", flags | {"precision": "fp32"}, **computed)
    index = RunIndex({str(tmp_path)})
    assert index.find(study[0].key).run_dir.path.name == "b"
    assert index.find(run_key(flags | {"precision": "fp32"})).run_dir.path.name in "ac"


def test_a_run_that_mlflow_has_not_heard_to_the_end_is_not_finished(study, tmp_path):
    flags = study[0].config.flat()
    fake_run(tmp_path / "seq-digits" / "er" / "a", flags, tracking="0123 pending\n")
    assert Sweep(study, RunIndex({str(tmp_path)})).state(study[0]) == "begun"
    (tmp_path / "seq-digits" / "er" / "a" / "mlflow_run").write_text("0123\n")
    assert Sweep(study, RunIndex({str(tmp_path)})).state(study[0]) == "finished"


def test_a_file_that_has_changed_since_is_told_of_finished_runs_and_of_one_that_goes_on(tmp_path, capsys):
    scores = tmp_path / "scores.npy"
    np.save(scores, np.zeros(1437))
    words = ["--memorization_scores", str(scores), "--output_dir", str(tmp_path / "runs"), *FIXED]
    argv = ["--model", "er", "--seed", "0", "1", "2", *words]
    runs = program.parse(argv)[1].resolved()
    folders = [tmp_path / "runs" / "seq-digits" / "er" / name for name in "abc"]
    for folder, run, status in zip(folders, runs, ("finished", "finished", "running"), strict=True):
        fake_run(folder, run.config.flat(), status)
        os.utime(folder / "config.yaml", (1000, 1000))
    os.utime(scores, (999, 999))
    assert program.main(["--dry_run", *argv]) == 0
    assert "note" not in capsys.readouterr().err
    os.utime(scores, (1001, 1001))
    os.utime(folders[1] / "config.yaml", (1002, 1002))
    assert program.main(["--dry_run", *argv]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert note.startswith(
        f"note: --memorization_scores {scores} has changed since 1 finished run of it began"
    )
    open_or_create(folders[2], runs[2].config.flat())
    goes_on = f"--memorization_scores {scores} has changed since the run began; it goes on with the new file"
    assert goes_on in capsys.readouterr().out and goes_on in (folders[2] / "log.txt").read_text()


def test_cost_is_that_of_the_most_similar_runs_by_epochs(study, tmp_path):
    flags = study[0].config.flat() | {"n_epochs": 1}
    for i, seconds in enumerate((10.0, 12.0, 99.0)):
        fake_run(tmp_path / "seq-digits" / "er" / str(i), flags | {"seed": i}, seconds=seconds)
    fake_run(tmp_path / "seq-digits" / "er" / "wide", flags | {"buffer_size": 5000}, seconds=1000.0)
    index = RunIndex({str(tmp_path)})
    assert index.seconds(study[0].config) == pytest.approx(5 * 12.0)
    assert index.seconds(parse(["--model", "sgd"]).config) is None


def test_dry_run_tells_runs_and_cost(study, tmp_path, capsys):
    fake_run(tmp_path / "seq-digits" / "er" / "a", study[0].config.flat(), seconds=30.0)
    argv = [
        "--model",
        "er",
        "sgd",
        "--seed",
        "0",
        "1",
        "--output_dir",
        str(tmp_path),
        "--jobs",
        "2",
        "--dry_run",
    ]
    assert program.main([*argv, *FIXED]) == 0
    out = capsys.readouterr().out
    assert "finished        –  er, seed 0" in out and "new          30 s  er, seed 1" in out
    assert "new       unknown  sgd, seed 0" in out
    assert "4 runs, 1 finished, 3 to do; about 30 s of runs" in out and "cost of 2 more unknown" in out
    assert "python main.py --output_dir=" in out
    assert not (tmp_path / "study.yaml").exists(), "nothing is written"


def test_words():
    assert [duration(s) for s in (3.4, 99, 600, 7200)] == ["3 s", "99 s", "10.0 min", "2.0 h"]
    assert "memory runs out" in reason(-9) and reason(143) == "interrupted (SIGTERM)" and "2" in reason(2)


def test_what_is_imported_ahead():
    points = [{"model": "maer", "dataset": "seq_mnist"}, {"model": "er", "dataset": "seq_mnist"}]
    assert {"engram.models.maer", "engram.models.er", "engram.datasets.seq_mnist", "mlflow.tracking"} <= set(
        preload(points)
    )
    assert "mlflow.tracking" not in preload([{"model": "er", "disable_log": "1"}])
    assert preload([{"backbone": "timm:vit_tiny_patch16_224"}, {"backbone": "mlp"}]).count("timm") == 1
