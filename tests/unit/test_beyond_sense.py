"""Values that no machine or file system takes are refused in one line, or made to fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engram.scripts.analysis.run_set import collect
from engram.utils.config.config import MAX_NAME, resolve
from engram.utils.errors import UserError
from engram.utils.runs.legacy_runs import write_run_dir
from engram.utils.tracking import legacy_file_store, mlflow_store
from tests.conftest import ROOT
from tests.unit.test_file_store import old, write_run  # noqa: F401  a fixture and its writer

SWEEP_PROCESS = """
from engram.utils.sweeps.process_pool import start_server
if __name__ == "__main__":
    start_server([])
"""


@pytest.mark.parametrize(
    "flags",
    [
        {"num_threads": "10000"}, {"num_threads": str(10**12)},
        {"output_dir": "a\0b"}, {"data_dir": "~nouser/x"},
        {"experiment_name": "x" * 300}, {"run_name": "x" * 300},
    ],
)  # fmt: skip
def test_values_beyond_sense_are_refused(flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}"):
        resolve([("test", {"model": "er", **flags})])


def test_a_home_that_is_not_there(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    resolve([("test", {"model": "er"})])  # the default folder need not be used
    with pytest.raises(UserError, match="--data_dir ~/data: there is no such home"):
        resolve([("test", {"model": "er", "data_dir": "~/data"})])


@pytest.mark.parametrize("name", ["x" * MAX_NAME, "ż" * MAX_NAME])
def test_a_long_experiment_has_a_folder(name):
    folder = mlflow_store.artifact_location("sqlite:////tmp/a/mlflow.db", name).rpartition("/")[2]
    other = mlflow_store.artifact_location("sqlite:////tmp/a/mlflow.db", name + "y").rpartition("/")[2]
    assert folder != other
    path = Path(mlflow_store.artifact_location("sqlite:////tmp/a/mlflow.db", name).removeprefix("file://"))
    assert path.parent.name == "mlruns"
    from urllib.parse import unquote

    assert len(os.fsencode(unquote(path.name))) < 255


def test_a_long_tmpdir_takes_the_sweeps_sockets(tmp_path):
    long = tmp_path / ("t" * 100)
    long.mkdir()
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP_PROCESS)
    environment = os.environ | {"TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_of_imported_runs_of_a_seed_the_one_that_ended_last_counts(old, tmp_path):  # noqa: F811
    later, earlier = f"{1:032x}", write_run(old / "7", 9, end_time=1600000000000, run_name="maer seed 1")
    (old / "7" / earlier / "params" / "seed").write_text("1")
    (old / "7" / earlier / "params" / "conf_jobnum").write_text("job1")
    runs = {run.id: run for run in legacy_file_store.read(old)}
    for run_id in (later, earlier):  # the file of the earlier run is written last
        assert write_run_dir(runs[run_id], tmp_path / "out")
    run_set = collect([tmp_path / "out"])
    assert [run.imported_run for run in run_set.runs] == [later]
    assert [run.imported_run for run in run_set.repeated] == [earlier]
