"""MLflow in a process of its own: the same store as without, and it ends with the run, however that ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engram import main as program
from engram.scripts.dev.stored_metrics import comparable_metrics
from tests.conftest import ROOT, run_main
from tests.processes import command_line, descendants, wait_for_end
from tests.waiting import exit_code, wait_until

pytestmark = pytest.mark.slow

FLAGS = ["--model", "er", "--dataset", "seq-digits", "--n_epochs", "2", "--batch_size", "20"]
LONG = ["--model", "er", "--dataset", "seq-digits", "--n_epochs", "15", "--checkpoint_every", "0.002"]


def places(folder: Path) -> list[str]:
    uri = f"sqlite:///{folder}/mlflow.db"
    return ["--wait_for_log", "--tracking_uri", uri, "--output_dir", str(folder / "runs")]


def content(folder: Path) -> dict:
    """All that the store says of the one run in it that does not depend on when and where it ran."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    points = comparable_metrics(client, run.info.run_id)
    own = ("tracking_uri", "output_dir", "checkpoint_every", "wait_for_log")
    return {
        "name": run.info.run_name, "status": run.info.status, "metrics": points,
        "params": {k: v for k, v in run.data.params.items() if k not in own}, "tags": set(run.data.tags),
        "files": sorted(f.path for f in client.list_artifacts(run.info.run_id)),
    }  # fmt: skip


def run_folder(folder: Path) -> Path:
    (path,) = (folder / "runs").glob("*/*/*")
    return path


def start(folder: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "main.py"), *flags, *places(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "out.txt", "w") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, cwd=ROOT, start_new_session=True
        )


def servers(pid: int) -> list[int]:
    """MLflow's process among those below this one."""
    return [child for child in descendants(pid) if "tracking_worker" in command_line(child)]


@pytest.mark.figures
def test_the_store_is_the_one_that_direct_calls_make(tmp_path):
    import mlflow  # noqa: F401  from here on the program calls it directly

    direct, apart = tmp_path / "direct", tmp_path / "apart"
    assert program.main([*FLAGS, *places(direct)]) == 0
    told = run_main(*FLAGS, *places(apart), cwd=ROOT).stdout
    assert content(apart) == content(direct) and content(apart)["status"] == "FINISHED"
    assert "results.json" in content(apart)["files"] and "mlflow ui" in told
    assert "pending" not in (run_folder(apart) / "mlflow_run").read_text()


def test_killed_and_resumed_the_store_is_whole(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    run_main(*LONG, *places(whole), cwd=ROOT)
    process = start(killed, *LONG)
    saved: set[int] = set()

    def saved_three_times() -> bool:
        saved.update(path.stat().st_mtime_ns for path in killed.glob("runs/*/*/*/checkpoint.pt"))
        return len(saved) >= 3

    wait_until(saved_three_times, process)
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_end(below)
    flags = ["--tracking_uri", f"sqlite:///{killed}/mlflow.db", "--wait_for_log"]
    run_main("--resume", str(run_folder(killed)), *flags, cwd=ROOT)
    assert content(killed) == content(whole)


def test_a_signal_to_all_processes_ends_the_run_in_the_store_too(tmp_path):
    process = start(tmp_path, *LONG, "--n_epochs", "300")  # which outlasts the start of MLflow
    named = (tmp_path / "runs").glob
    wait_until(lambda: any(path.read_text().split()[1:] for path in named("*/*/*/mlflow_run")), process)
    below = descendants(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    assert exit_code(process) == 128 + signal.SIGTERM
    wait_for_end(below)
    assert content(tmp_path)["status"] == "KILLED"
    assert (run_folder(tmp_path) / "mlflow_run").read_text().endswith("pending\n")


def test_a_signal_while_it_starts_does_not_end_it(tmp_path):
    process = start(tmp_path, *FLAGS)
    wait_until(lambda: servers(process.pid), process)
    os.kill(servers(process.pid)[0], signal.SIGTERM)
    assert exit_code(process) == 0
    assert content(tmp_path)["status"] == "FINISHED"


def test_a_store_that_cannot_be_opened_is_told_once_and_harms_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    flags = [*FLAGS, "--wait_for_log", "--tracking_uri", f"sqlite:///{tmp_path}/file/mlflow.db"]
    done = run_main(*flags, "--output_dir", str(tmp_path / "runs"), cwd=ROOT)
    assert done.stderr.count("MLflow: opening") == 1 and "File exists" in done.stderr
    assert "mlflow ui" not in done.stdout
    assert (run_folder(tmp_path) / "mlflow_run").read_text() == "pending\n", "the next start sends it"
    assert json.loads((run_folder(tmp_path) / "results.json").read_text())["status"] == "finished"


def test_its_death_is_told_and_harms_nothing(tmp_path):
    process = start(tmp_path, *LONG)
    wait_until(lambda: servers(process.pid) and any(tmp_path.glob("runs/*/*/*/checkpoint.pt")), process)
    os.kill(servers(process.pid)[0], signal.SIGKILL)
    assert exit_code(process) == 0
    told = (tmp_path / "out.txt").read_text()
    assert told.count("MLflow: its process has ended") == 1 and "mlflow ui" not in told
    assert json.loads((run_folder(tmp_path) / "results.json").read_text())["status"] == "finished"


def test_nothing_is_left_when_the_run_cannot_be_built(tmp_path):
    process = start(tmp_path, "--model", "pnn", "--dataset", "seq-digits")
    seen: set[int] = set()

    def ended() -> bool:
        seen.update(descendants(process.pid))
        return process.poll() is not None

    wait_until(ended)
    assert process.returncode == 2 and seen
    wait_for_end(list(seen))
    told = (tmp_path / "out.txt").read_text()
    assert "error: --dataset seq-digits: pnn is defined" in told and "Traceback" not in told
