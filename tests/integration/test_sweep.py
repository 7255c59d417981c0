"""Sweeps of real runs: nothing is run twice, a kill at any moment loses nothing, failures are told."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from engram.scripts import sweep as program
from engram.scripts.dev.stored_metrics import comparable_metrics
from engram.utils.metrics.statistics import mean_std_ci
from tests.conftest import ROOT, random_draws
from tests.integration.test_resume import measured
from tests.processes import descendants, wait_for_end
from tests.waiting import exit_code, wait_until

pytestmark = pytest.mark.slow

GRID = ["--model", "er", "sgd", "--seed", "0", "1"]
# Runs of a few seconds, with checkpoints so often that a kill falls between two of them.
FIXED = ["--", "--dataset", "seq-digits", "--n_epochs", "4", "--batch_size", "20"]
SAVING = ["--checkpoint_every", "0.0005"]


def sweep_flags(folder: Path, store: Path | None, *own: str, grid=GRID, fixed=FIXED) -> list[str]:
    log = ["--tracking_uri", f"sqlite:///{store}/mlflow.db"] if store else ["--disable_log"]
    return [*grid, "--output_dir", str(folder), "--jobs", "2", *own, *fixed, *SAVING, *log]


def results(folder: Path) -> dict[tuple, dict]:
    """(method, seed) → what was measured; each only once."""
    found = {}
    for path in folder.glob("*/*/*/results.json"):
        config = json.loads(path.read_text())["config"]
        key = config["model"], config["seed"]
        assert key not in found, f"{key} was run twice"
        found[key] = measured(path.parent)
    return found


def stored(store: Path):
    """(client, the runs in the store)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    return client, client.search_runs([e.experiment_id for e in client.search_experiments()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing disturbs."""
    forkserver._forkserver._stop()  # one of other tests, in the same process, has imported nothing ahead
    folder = tmp_path_factory.mktemp("whole")
    assert program.main(sweep_flags(folder / "runs", folder, "--name", "four")) == 0
    return folder


def test_all_runs_are_there_and_a_second_start_runs_nothing(whole, capsys):
    before = results(whole / "runs")
    assert set(before) == {(model, seed) for model in ("er", "sgd") for seed in (0, 1)}
    capsys.readouterr()
    assert program.main(sweep_flags(whole / "runs", whole, "--name", "four")) == 0
    told = capsys.readouterr().out
    assert "4 runs: 4 finished before, 0 now, 0 failed" in told
    assert (
        told.count("browse:  mlflow ui --backend-store-uri sqlite:") == told.count("viewStateShareKey") == 1
    )
    assert results(whole / "runs") == before
    assert len(stored(whole)[1]) == 6, "neither runs nor parents are repeated"


def test_torch_is_imported_while_the_server_imports_it_too():
    code = "import sys, scripts.sweep; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_kept_study_is_the_same_study(whole, capsys):
    assert program.main([str(whole / "runs" / "study.yaml"), "--dry_run"]) == 0
    assert "4 runs, 4 finished, 0 to do" in capsys.readouterr().out


def test_parents_hold_the_statistics_of_their_seeds(whole):
    client, runs = stored(whole)
    parents = {run.data.tags["model"]: run for run in runs if "setting" in run.data.tags}
    children = [run for run in runs if "setting" not in run.data.tags]
    assert set(parents) == {"er", "sgd"} and len(children) == 4
    for model, parent in parents.items():
        own = [run for run in children if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
        assert {run.data.tags["seed"] for run in own} == {"0", "1"} and parent.data.metrics["n"] == 2
        assert {run.data.tags["model"] for run in own} == {model}
        seeds = mean_std_ci([run.data.metrics["mean_acc_class_il"] for run in own])
        got = [parent.data.metrics[f"mean_acc_class_il{end}"] for end in ("", "_std", "_ci95")]
        assert got == pytest.approx([seeds.mean, seeds.std, seeds.ci95])
        history = client.get_metric_history(parent.info.run_id, "acc_task_il_task_1")
        per_seed = [client.get_metric_history(run.info.run_id, "acc_task_il_task_1") for run in own]
        means = np.mean([[m.value for m in sorted(h, key=lambda m: m.step)] for h in per_seed], axis=0)
        assert [m.value for m in sorted(history, key=lambda m: m.step)] == pytest.approx(list(means))
        assert f"{seeds.mean:.2f} ± {seeds.std:.2f}" in parent.data.tags["mlflow.note.content"]
        assert parent.info.status == "FINISHED" and parent.info.run_name == f"{model}: 2 seeds"


def test_runs_tell_what_they_took_of_the_machine(whole):
    client, runs = stored(whole)
    run = next(run for run in runs if "seed" in run.data.tags)
    memory = client.get_metric_history(run.info.run_id, "system/process_memory_usage_megabytes")
    assert [m.step for m in memory] == list(range(5)) and all(50 < m.value < 1e5 for m in memory)


def start(flags: list[str], log) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


def wait_for_checkpoints(process: subprocess.Popen, folder: Path, n: int) -> None:
    """Until runs have been seen to save `n` times, or the process has ended."""

    def saved_at() -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in folder.glob("*/*/*/checkpoint.pt")}

    seen = before = saved_at()

    def saved_enough() -> bool:
        nonlocal seen
        seen = seen | saved_at()
        return len(seen) >= len(before) + n or process.poll() is not None

    wait_until(saved_enough)


def test_killed_and_interrupted_at_random_moments_nothing_is_lost_or_repeated(whole, tmp_path):
    """SIGKILL to the sweep, then SIGINT to the next one, then a third finishes: as if nothing had been."""
    draws = random_draws("signals to a sweep")
    moments = draws.randint(1, 12), draws.randint(1, 6)
    folder, flags = tmp_path / "runs", sweep_flags(tmp_path / "runs", tmp_path, "--name", "four")
    codes = []
    with open(tmp_path / "log", "w") as log:
        for number, n in zip((signal.SIGKILL, signal.SIGINT), moments, strict=True):
            process = start(flags, log)
            wait_for_checkpoints(process, folder, n)
            below = descendants(process.pid)
            process.send_signal(number)
            codes.append(exit_code(process))
            # a run that outlives a killed sweep saves at its end, which is not the next sweep's checkpoint
            wait_for_end(below)
    told = (tmp_path / "log").read_text()
    assert codes[0] in (-signal.SIGKILL, 0), told
    assert codes[1] == 0 or (codes[1] == 130 and "to go on:\n  python scripts/sweep.py --mod" in told), told
    assert program.main(flags) == 0
    assert results(folder) == results(whole / "runs"), f"signals after {moments} checkpoints"
    assert_same_stores(whole, tmp_path)


def assert_same_stores(a: Path, b: Path) -> None:
    """The same runs, each once, finished, with the same metrics at the same steps."""
    contents = []
    for store in (a, b):
        client, runs = stored(store)
        content = {}
        for run in runs:
            assert run.info.status == "FINISHED", run.info.run_name
            assert run.info.run_name not in content, f"{run.info.run_name} is there twice"
            points = comparable_metrics(client, run.info.run_id)
            files = sorted(f.path for f in client.list_artifacts(run.info.run_id))
            content[run.info.run_name] = points, files, sorted(run.data.params)
        contents.append(content)
    assert contents[0] == contents[1]


def test_a_run_that_diverged_is_told_not_tried_again_and_harms_no_other(tmp_path, capsys):
    grid = ["--model", "sgd", "--lr", "0.1", "1e30"]
    code = program.main(sweep_flags(tmp_path, None, "--retries", "1", grid=grid))
    out, err = capsys.readouterr()
    assert code == 1 and "2 runs: 0 finished before, 1 now, 1 failed" in out
    assert "failed: sgd, lr 1e30 (exit code 1: the loss became" in err and "trying again" not in err
    assert f"report:  python scripts/report.py {tmp_path}" in out
    told = err.split("sgd, lr 1e30: exit code 1")[1]
    assert "error: the loss became" in told and "output.txt" in told
    assert "again:  python main.py" in told and "--lr=1e30" in told
    (finished,) = [p for p in tmp_path.glob("*/*/*/results.json") if '"finished"' in p.read_text()]
    assert json.loads(finished.read_text())["config"]["lr"] == 0.1


def test_a_run_is_run_by_one_process_at_a_time(whole):
    from engram import main
    from engram.utils.runs.run_dir import RunDir

    path = next((whole / "runs").glob("*/*/*"))
    with RunDir(path).claimed():
        assert main.main(["--resume", str(path)]) == 2
