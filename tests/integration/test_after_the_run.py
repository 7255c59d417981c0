"""What follows after the command has returned: figures and MLflow's end, once, whatever happens meanwhile."""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engram import main as program
from engram.utils.runs import completion
from engram.utils.runs.run_dir import RunDir
from tests.conftest import ROOT, run_main, tiny_config
from tests.integration.test_tracking_process import FLAGS, content, places, run_folder, servers, start
from tests.processes import wait_for_end
from tests.waiting import exit_code, wait_until

pytestmark = pytest.mark.slow


@contextmanager
def held_store(folder: Path) -> Iterator[None]:
    """Inside, MLflow's database of the folder belongs to somebody else."""
    with open(folder / "mlflow.db.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ended(folder: Path, *flags: str) -> int:
    """Start a run whose command returns at once, and wait for that; the id of MLflow's process."""
    process = start(folder, *flags)
    wait_until(lambda: servers(process.pid), process)
    (pid,) = servers(process.pid)
    assert exit_code(process) == 0
    return pid


@pytest.fixture
def returns_at_once(monkeypatch):
    """`places`, and so `start`, without --wait_for_log."""
    module = "tests.integration.test_tracking_process.places"
    monkeypatch.setattr(module, lambda folder: places(folder)[1:])


@pytest.mark.figures
@pytest.mark.usefixtures("returns_at_once")
def test_the_command_returns_before_mlflow_has_the_run_which_nobody_else_sends(tmp_path, capsys):
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    apart.mkdir()
    run_main(*FLAGS, *places(whole), cwd=ROOT)
    with held_store(apart):
        ended(apart, *FLAGS)
        path = run_folder(apart)
        assert json.loads((path / "results.json").read_text())["status"] == "finished"
        assert (path / "mlflow_run").read_text() == "pending\n"
        assert (path / "accuracy_matrix_class_il.csv").exists() and (path / "class_order.json").exists()
        assert program.main(["--resume", str(path)]) == 2
        assert "sends it to MLflow" in capsys.readouterr().err
    wait_until(lambda: RunDir(path).logged)
    assert content(apart) == content(whole) and content(apart)["status"] == "FINISHED"
    names = {file.name for file in path.iterdir()}
    assert {file.name for file in run_folder(whole).iterdir()} == names and "curves.png" in names
    lines = (apart / "out.txt").read_text().splitlines()
    assert lines[-3].startswith("figures and the end of the MLflow run follow")
    assert lines[-2].startswith("picture: ") and lines[-1].startswith("results: ")


@pytest.mark.figures
@pytest.mark.usefixtures("returns_at_once")
def test_killed_after_the_command_the_next_start_draws_and_sends_once(tmp_path):
    with held_store(tmp_path):
        pid = ended(tmp_path, *FLAGS)
        os.kill(pid, signal.SIGTERM)
        wait_for_end([pid])
    path = run_folder(tmp_path)
    assert not RunDir(path).logged
    run_main("--resume", str(path), "--wait_for_log", cwd=ROOT)
    stored = content(tmp_path)
    assert stored["status"] == "FINISHED" and "curves.png" in stored["files"]
    assert [step for step, _ in stored["metrics"]["mean_acc_class_il"]] == [0, 1, 2, 3, 4]
    assert RunDir(path).logged and (path / "curves.png").exists()


@pytest.mark.usefixtures("returns_at_once")
def test_who_reads_the_output_need_not_wait_and_the_log_says_what_failed(tmp_path):
    (tmp_path / "file").write_text("")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    done = run_main(*FLAGS, "--tracking_uri", uri, "--output_dir", str(tmp_path / "runs"), cwd=ROOT)
    assert isinstance(done, subprocess.CompletedProcess)  # the end of its output has come
    log = run_folder(tmp_path) / "log.txt"
    wait_until(lambda: "pending: MLflow lacks this run" in log.read_text())
    assert log.read_text().count("MLflow: opening") + done.stderr.count("MLflow: opening") == 1
    assert not RunDir(log.parent).logged


def test_when_the_command_waits(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not completion.must_be_waited_for(tiny_config())
    assert completion.must_be_waited_for(tiny_config(wait_for_log=True))
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # Slurm ends what a job leaves behind
    assert completion.must_be_waited_for(tiny_config())
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as does the end of a container
    assert completion.must_be_waited_for(tiny_config())
