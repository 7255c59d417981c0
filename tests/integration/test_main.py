"""The program as a user runs it: one golden run, every flag that changes what happens, every bad input."""

import csv
import fcntl
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from engram import main as program
from engram.datasets import scenarios
from engram.models import build
from engram.scripts import worker
from engram.utils import checkpoint
from engram.utils.config.cli import parse
from engram.utils.runs.run_dir import RunDir
from tests.conftest import ROOT
from tests.waiting import TickingClock

FAST = ["--dataset", "seq-digits", "--disable_log", "--n_epochs", "1", "--batch_size", "20"]


@pytest.fixture
def run(folder, capsys):
    """Call the program in this process: (exit code, stdout, stderr, results or None)."""

    def call(*flags: str, fast: bool = True):
        code = program.main([*(FAST if fast else []), *flags, "--output_dir", str(folder / "runs")])
        said = capsys.readouterr()
        last = said.out.splitlines()[-1] if said.out else ""
        path = last.removeprefix("results: ") if last.startswith("results: ") else None
        return code, said.out, said.err, json.loads(Path(path).read_text()) if path else None

    return call


def run_folder(folder: Path) -> Path:
    return max((folder / "runs").glob("*/*/*"), key=lambda p: p.stat().st_mtime_ns)


def test_golden(run):
    """ER on the embedded digits, seed 0. One test image more or less is one processor's rounding."""
    code, out, _, results = run("--model", "er", "--buffer_size", "100", "--n_epochs", "3")
    assert code == 0 and out.splitlines()[-1].startswith("results: ")
    R = np.array(results["class_il"]["R"], dtype=float)
    golden = np.array(json.loads((ROOT / "tests" / "integration" / "golden_er_digits.json").read_text()))
    assert np.abs(R - golden).max() < 2.5 / 71, R.round(3).tolist()


def test_results_document(run):
    code, out, _, results = run("--model", "er", "--seed", "3")
    assert code == 0
    expected = {
        "config", "seed", "status", "class_il", "task_il", "fwt", "b", "seconds", "images_per_second",
        "peak_memory_bytes", "device", "precision", "versions", "git_commit", "git_dirty", "class_order",
    }  # fmt: skip
    assert expected <= set(results)
    assert results["status"] == "finished" and results["seed"] == 3
    R = np.array(results["class_il"]["R"], dtype=float)
    assert R.shape == (5, 5) and (np.triu(R, 1) == 0).all(), "unseen classes are never predicted in class-IL"
    assert results["class_il"]["average_accuracy"] == pytest.approx(R[-1].mean())
    task_view = np.array(results["task_il"]["R"], dtype=float)
    b = np.array(results["b"])
    assert results["fwt"] == pytest.approx((np.diag(task_view, 1) - b[1:]).mean())
    seconds = results["seconds"]
    assert seconds["total"] >= seconds["train"] + seconds["eval"] > 0
    assert results["images_per_second"] > 0 and results["peak_memory_bytes"] > 1e7
    assert f"{100 * R[-1].mean():.1f}" in out


def test_waiting_for_who_runs_it_now_is_no_part_of_the_total(folder, monkeypatch):
    path, clock, flock = folder / "run", TickingClock(), fcntl.flock
    monkeypatch.setattr(time, "monotonic", clock)
    flags = parse(["--model", "sgd", *FAST]).config.flat() | {"output_dir": str(folder)}
    claim = RunDir.at(path, flags).claimed()
    claim.__enter__()

    def ends_after_1000_seconds(file, operation):
        if operation == fcntl.LOCK_EX:  # the call that waits
            clock.spend(1000)
            claim.__exit__(None, None, None)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", ends_after_1000_seconds)
    started = clock()
    assert worker.execute_run(str(path), flags) == 0
    total = json.loads((path / "results.json").read_text())["seconds"]["total"]
    assert clock() - started > 1000 > total > 0


def test_time_that_went_into_the_data_is_part_of_the_total(run, monkeypatch):
    def slow(*args):
        method = build_method(*args)
        method.setup.benchmark.build_seconds = 1000.0
        return method

    build_method = build.build_method
    monkeypatch.setattr(build, "build_method", slow)
    seconds = run("--model", "er")[3]["seconds"]
    assert seconds["data"] == pytest.approx(1000, abs=60)  # and what training waited for data
    assert seconds["total"] >= seconds["train"] + seconds["eval"] + 1000


def test_ignore_other_metrics_changes_no_other_number(run):
    full, short = run("--model", "er")[3], run("--model", "er", "--ignore_other_metrics")[3]
    assert short["fwt"] is None and set(short["b"]) == {None}
    assert full["fwt"] is not None
    assert short["task_il"]["R"][0][1] is None
    for key in ("average_accuracy", "forgetting", "bwt"):
        assert short["class_il"][key] == full["class_il"][key]
    assert short["class_il"]["R"][4] == full["class_il"]["R"][4]


def test_two_runs_of_a_seed_agree_and_seeds_differ(run):
    first, second, other = (run("--model", "maer", "--seed", s)[3] for s in ("1", "1", "2"))
    assert first["class_il"] == second["class_il"] and first["class_il"] != other["class_il"]


def test_permute_classes_is_the_papers_order(run):
    order = run("--model", "sgd", "--permute_classes", "1", "--seed", "42")[3]["class_order"]
    new_label = np.random.RandomState(42).permutation(10)
    assert new_label[order].tolist() == list(range(10)), "class c becomes label permutation[c]"
    assert run("--model", "sgd")[3]["class_order"] == list(range(10))


def test_validation_takes_the_test_sets_place(run):
    results = run("--model", "sgd", "--validation", "20")[3]
    assert results["evaluated_on"] == "validation"
    # 20 % of about 287 training images of a task, so accuracies are multiples of 1/57 or 1/58
    share = results["class_il"]["R"][0][0]
    assert any(abs(share * n - round(share * n)) < 1e-9 for n in (56, 57, 58))


def test_early_stopping_ends_a_task_early(run):
    flags = ("--model", "sgd", "--validation", "20", "--n_epochs", "40")
    stopped = run(*flags, "--early_stopping_patience", "2", "--batch_size", "20")[3]
    whole = run(*flags)[3]
    assert stopped["seconds"]["train"] < whole["seconds"]["train"] / 2
    assert stopped["class_il"]["R"][0][0] > 0.9


def test_eval_every_gives_the_curve(run):
    results = run("--model", "er", "--eval_every", "5")[3]
    curve = results["curve"]
    inside = [p["step"] for p in curve if p["step"] % 5 == 0]
    assert len(inside) >= 70 // 5 - 1 and curve == sorted(curve, key=lambda p: p["step"])
    assert [len(p["class_il"]) for p in curve] == [p["task"] + 1 for p in curve]
    assert curve[-1]["class_il"] == results["class_il"]["R"][-1]
    lowest = [min(p["class_il"][j] for p in curve if p["task"] > j) for j in range(4)]
    assert results["class_il"]["min_acc"] == pytest.approx(np.mean(lowest))


def test_debug_mode_takes_five_steps_an_epoch(run, folder):
    _, out, _, _results = run("--model", "sgd", "--debug_mode", "--n_epochs", "2")
    saved = checkpoint.read(run_folder(folder) / "checkpoint.pt")
    assert saved["position"]["total"] == 5 * 2 * 5 and "at most 5 steps" in out


def test_savecheck_and_loadcheck(run, folder):
    run("--model", "sgd", "--savecheck", "task")
    weights = run_folder(folder) / "weights"
    assert sorted(p.name for p in weights.iterdir()) == ["last.pt", *(f"task_{i}.pt" for i in range(5))]
    last = torch.load(weights / "last.pt", weights_only=True)["net"]
    again = run("--model", "sgd", "--loadcheck", str(weights / "last.pt"))[3]
    untrained = run("--model", "sgd")[3]
    assert again["b"] != untrained["b"], "the untrained evaluation sees the loaded weights"
    assert set(last) == set(torch.load(weights / "task_0.pt", weights_only=True)["net"])
    run("--model", "sgd", "--savecheck", "last")
    assert [p.name for p in (run_folder(folder) / "weights").iterdir()] == ["last.pt"]


def test_optimizer_flags_reach_the_optimizer(run):
    plain = run("--model", "sgd")[3]["task_il"]
    changes = [
        ("--lr", "0.01"), ("--optimizer", "adam", "--lr", "0.001"), ("--optimizer", "adamw", "--lr", "0.001"),
        ("--optim_wd", "0.1"), ("--optim_mom", "0.9"), ("--hidden_sizes", "20"), ("--backbone", "cnn"),
        ("--precision", "bf16"), ("--n_tasks", "2"), ("--multi_head", "1"),
        ("--lr_scheduler", "cosine", "--n_epochs", "2"), ("--batch_size", "7"),
    ]  # fmt: skip
    for flags in changes:
        assert run("--model", "sgd", *FAST, *flags, fast=False)[3]["task_il"] != plain, flags
    for kind in (("adam", "--lr", "0.001"), ("sgd", "--optim_mom", "0.9"), ("sgd", "--optim_mom", "0")):
        flags = ("--model", "sgd", "--optimizer", *kind)
        kept = run(*flags, "--keep_optimizer")[3]["task_il"] != run(*flags)[3]["task_il"]
        assert kept == (kind[-1] != "0"), kind
    flags = ("--model", "sgd", *FAST, "--n_epochs", "3")
    constant = run(*flags, fast=False)[3]["task_il"]
    step = ("--lr_scheduler", "multistep", "--lr_milestones", "1", "--sched_multistep_lr_gamma")
    assert run(*flags, *step, "1.0", fast=False)[3]["task_il"] == constant
    assert run(*flags, *step, "0.001", fast=False)[3]["task_il"] != constant


def test_num_threads_and_config_file(run, folder):
    file = folder / "my.yaml"
    file.write_text("model: er\nnum_threads: 1\nbuffer_size: 30\nchannels: [4, 8]\nbackbone: cnn\n")
    code, _, _, results = run("--config", str(file))
    assert code == 0 and results["config"]["buffer_size"] == 30 and results["config"]["channels"] == [4, 8]
    assert "1 threads" in results["device"]


@pytest.mark.figures
def test_the_run_folder(run, folder):
    _, out, _, _ = run("--model", "er")
    path = run_folder(folder)
    names = {p.name for p in path.iterdir()}
    files = {
        "results.json",
        "config.yaml",
        "log.txt",
        "checkpoint.pt",
        "curves.png",
        "accuracy_matrix_class_il.csv",
    }
    assert files <= names and not {n for n in names if n.endswith("tmp")}
    assert yaml.safe_load((path / "config.yaml").read_text())["buffer_size"] == 200
    assert (path / "log.txt").read_text().strip() == out.strip()
    with open(path / "accuracy_matrix_class_il.csv") as file:
        assert len(list(csv.reader(file))) == 6


# --- bad input: one message, a non-zero exit, nothing lost ------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet"], "unknown method 'resnet'"),
        (["--model", "er", "--bufersize", "3"], "unknown argument --bufersize; did you mean --buffer_size"),
        (["--model", "er", "--buffer_size", "-3"], "--buffer_size -3: must be >= 0"),
        (["--model", "er", "--n_tasks", "11"], "--n_tasks 11: 10 classes can be split into 1 to 10 tasks"),
        (["--model", "er", "--device", "9" * 20], f"--device {'9' * 20}: choose auto, cpu, cuda"),
        (["--model", "er", "--device", "tpu"], "--device tpu: choose auto, cpu, cuda, cuda:N or N"),
        (["--model", "er", "--device", "cuda:99"], "--device cuda:99: this machine has"),
        (["--model", "maer", "--memorization_scores", "none.npy"], "none.npy: no such file"),
        (["--model", "er", "--loadcheck", "none.pt"], "none.pt: no such checkpoint"),
        (["--resume", "nothing"], "--resume nothing: no run folder of that path"),
    ],
)
def test_bad_input(run, flags, message):
    code, out, err, _ = run(*flags, fast="--resume" not in flags)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err and "Traceback" not in err


def test_scores_of_another_data_set_are_refused(run, folder):
    np.save(folder / "scores.npy", np.zeros(50_000))
    code, _, err, _ = run("--model", "maer", "--memorization_scores", str(folder / "scores.npy"))
    assert code == 2 and "has shape (50000,), the training set needs (1437,)" in err


def test_weights_of_another_network_are_refused(run, folder):
    run("--model", "sgd", "--savecheck", "last")
    path = run_folder(folder) / "weights" / "last.pt"
    code, _, err, _ = run("--model", "sgd", "--hidden_sizes", "50", "--loadcheck", str(path))
    assert code == 2 and "belong to another network" in err
    assert "head.weight (10x50 here, 10x100 there)" in err and "give the flags of network and method" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "icarl --multi_head",
            "--multi_head: icarl is defined for class-il, not for task-il; give --scenario class-il instead",
        ),
        (
            "scr --scenario task-il",
            "--scenario task-il: scr is defined for class-il, domain-il, not for task-il",
        ),
        (
            "pnn",
            "--dataset seq-digits: pnn is defined for task-il, not for class-il; give --scenario task-il",
        ),
    ],
)
def test_a_scenario_that_a_method_is_not_defined_for_names_the_flag_to_change(run, flags, message):
    code, _out, err, _ = run("--model", *flags.split())
    assert code == 2 and message in err


def test_nan_loss_stops_with_the_place_and_keeps_finished_tasks(run, folder):
    """The loss of the third task is poisoned; two tasks of 15 steps come before it."""
    from engram.models.sgd import SGD

    def poisoned(self, batch, loss=SGD.loss):
        value = loss(self, batch)
        return value * float("nan") if self.task.id == 2 and self.epoch == 0 else value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SGD, "loss", poisoned)
        code, _out, err, results = run("--model", "sgd")
    assert code == 1
    assert "the loss became nan at training step 30 (task 2 (3/5) epoch 1/1)" in err
    assert f"last good checkpoint: {run_folder(folder) / 'checkpoint.pt'}" in err
    assert results["status"] == "failed"
    R = np.array(results["class_il"]["R"], dtype=float)
    assert not np.isnan(R[:2]).any() and np.isnan(R[2:]).all()


def test_a_damaged_or_foreign_checkpoint_is_refused(run, folder):
    run("--model", "er", "--seed", "1")
    first = run_folder(folder)
    run("--model", "er", "--seed", "2")
    second = run_folder(folder)
    own = (second / "checkpoint.pt").read_bytes()
    (second / "checkpoint.pt").write_bytes((first / "checkpoint.pt").read_bytes())
    code, _, err, _ = run("--resume", str(second), fast=False)
    assert code == 2 and "belongs to another run: --seed is 2, there 1" in err
    (second / "checkpoint.pt").write_bytes(own[: len(own) // 3])
    code, _, err, _ = run("--resume", str(second), fast=False)
    assert code == 2 and "damaged or not a checkpoint" in err
    assert json.loads((second / "results.json").read_text())["status"] == "finished", "nothing was lost"


def test_a_checkpoint_of_another_class_order_is_refused(run, folder, monkeypatch):
    """Versions before it was the paper's order permuted otherwise; data may change too."""
    run("--model", "er", "--permute_classes", "1", "--stop_after", "2")
    order = scenarios.class_order
    monkeypatch.setattr(scenarios, "class_order", lambda *args, **kw: np.argsort(order(*args, **kw)))
    code, _, err, _ = run("--resume", str(run_folder(folder)), fast=False)
    assert code == 2 and "checkpoint.pt: the classes of the data, or their order, were others" in err
    monkeypatch.undo()
    assert run("--resume", str(run_folder(folder)), fast=False)[0] == 0


def test_an_output_dir_that_cannot_be_written(folder, capsys):
    (folder / "file").write_text("")
    code = program.main(["--model", "er", *FAST, "--output_dir", str(folder / "file")])
    assert code == 2 and "cannot be written" in capsys.readouterr().err
