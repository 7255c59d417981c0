"""MLflow that hangs: the run ends as it would, says what MLflow lacks, and the next start sends it once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engram import main as program
from tests.conftest import ROOT
from tests.integration.test_tracking_process import FLAGS, LONG, run_folder
from tests.waiting import exit_code, stalled_server, wait_until

pytestmark = pytest.mark.slow

# The program with deadlines that a test can wait for; a thread talks to MLflow where it is imported.
PROGRAM = """
import sys
from engram.utils.tracking.background_tracker import BackgroundTracker
BackgroundTracker.answer_seconds, BackgroundTracker.stop_seconds = float(sys.argv[1]), float(sys.argv[2])
if sys.argv[3] == "thread":
    import mlflow
if sys.argv[3] == "stopped":
    import os, signal, time
    from engram.utils.runs.recorder import Recorder
    after_task = Recorder.after_task
    def stop_its_process(self, row):
        while row == 2 and not self.tracker.run_id:
            time.sleep(0.01)
        if row == 2:
            os.kill(self.tracker._worker._process.pid, signal.SIGSTOP)
        after_task(self, row)
    Recorder.after_task = stop_its_process
from engram.main import main
sys.exit(main(sys.argv[4:]))
"""
# The requests themselves would wait for ten minutes.
PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "600", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"}


def start(folder: Path, *flags: str, answer: float = 0.5, stop: float = 0.5, how: str = "process"):
    waits = [] if how == "stopped" else ["--wait_for_log"]  # a stopped process cannot take over the rest
    command = [sys.executable, "-c", PROGRAM, str(answer), str(stop), how, *flags, *waits]
    with open(folder / "out.txt", "w") as out:
        return subprocess.Popen(
            [*command, "--output_dir", str(folder / "runs")], stdout=out, stderr=out, cwd=ROOT,
            env=os.environ | PATIENT | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def check_sent_once(folder: Path, uri: str) -> None:
    """Send what is pending to `uri`; every task must be there once, in one run."""
    from mlflow.tracking import MlflowClient

    assert program.main(["--resume", str(run_folder(folder)), "--tracking_uri", uri]) == 0
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("seq-digits").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "mean_acc_class_il")]
    assert sorted(steps) == [0, 1, 2, 3, 4] and run.info.status == "FINISHED"
    assert "pending" not in (run_folder(folder) / "mlflow_run").read_text()


@pytest.mark.parametrize("how", ["process", "thread"])
def test_a_server_that_never_answers_does_not_hold_a_finished_run(tmp_path, how):
    with stalled_server() as uri:
        process = start(tmp_path, *FLAGS, "--tracking_uri", uri, how=how)
        assert exit_code(process) == 0
    told = (tmp_path / "out.txt").read_text()
    path = run_folder(tmp_path)
    assert told.count("MLflow: no answer for 0.5 s") == 1 and "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("pending:")]
    assert "MLflow lacks this run" in line and line.endswith(f"main.py --resume {path}")
    assert (path / "mlflow_run").read_text() == "pending\n"
    assert json.loads((path / "results.json").read_text())["status"] == "finished"
    check_sent_once(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize("how", ["process", "thread"])
def test_a_signal_ends_a_run_whose_server_never_answers(tmp_path, how):
    with stalled_server() as uri:
        process = start(tmp_path, *LONG, "--tracking_uri", uri, answer=3600, how=how)
        wait_until(lambda: any(tmp_path.glob("runs/*/*/*/checkpoint.pt")), process)
        process.send_signal(signal.SIGTERM)
        assert exit_code(process) == 128 + signal.SIGTERM
    assert json.loads((run_folder(tmp_path) / "results.json").read_text())["status"] == "interrupted"
    assert (run_folder(tmp_path) / "mlflow_run").read_text() == "pending\n"


def test_its_process_that_is_stopped_in_the_middle_does_not_hold_a_finished_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    process = start(tmp_path, *FLAGS, "--tracking_uri", uri, how="stopped")
    assert exit_code(process) == 0
    told = (tmp_path / "out.txt").read_text()
    assert "MLflow lacks the end of this run" in told and told.count("MLflow: no answer") == 1
    check_sent_once(tmp_path, uri)
