"""Passwords of tracking URIs: hidden wherever something is stored or printed, and completed on use."""

import pytest
import yaml

from engram import main as program
from engram.scripts import sweep as sweep_program
from engram.utils.config.config import resolve
from engram.utils.config.run_key import run_key
from engram.utils.credentials import completed, moved_to_environment, redact
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.sweeps.run_index import RunIndex
from engram.utils.sweeps.sweep import Sweep
from engram.utils.sweeps.sweep_spec import SweepSpec
from engram.utils.tracking import mlflow_store

SECRET = "s3cr3t"
URI, STORED = f"postgresql://me:{SECRET}@host:5432/db", "postgresql://***@host:5432/db"
FLAGS = {"model": "er", "dataset": "seq-digits", "tracking_uri": URI}


@pytest.mark.parametrize(
    ("uri", "stored"),
    [
        (URI, STORED),
        (f"postgresql+psycopg2://me:{SECRET}/x@y@host/db", "postgresql+psycopg2://***@host/db"),
        (f"https://me:{SECRET}@host:5000/a@b", "https://***@host:5000/a@b"),
        (f"http://{SECRET}@host", "http://***@host"),
        (f"mysql://host/db?user=me&password={SECRET}&x=1", "mysql://host/db?user=me&password=***&x=1"),
    ],
)
def test_passwords_are_hidden(uri, stored):
    assert redact(uri) == stored and redact(stored) == stored
    assert redact(f"at {uri} and {uri}") == f"at {stored} and {stored}"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////home/me@work/mlflow.db",
        "http://host:5000",
        "postgresql://me@host/db",
        "postgresql://host:5432/db",
    ],
)
def test_what_is_no_secret_stays(uri):
    assert redact(uri) == uri == completed(uri)


def test_credentials_come_from_the_environment(monkeypatch):
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for stored in (STORED, "https://***@host"):
        with pytest.raises(UserError, match=r"passwords are not stored; give --tracking_uri again"):
            mlflow_store.resolve_uri(stored)
        assert "***" in mlflow_store.how_to_browse(stored)  # shown without being asked for
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a/b@c")
    assert mlflow_store.resolve_uri(STORED) == "postgresql://me:a%2Fb%40c@host:5432/db"
    assert mlflow_store.resolve_uri("https://***@host") == "https://host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    assert mlflow_store.resolve_uri(STORED) == URI
    assert mlflow_store.resolve_uri("mysql://***@other/db") == "mysql://me:a%2Fb%40c@other/db"


def test_a_run_folder_and_a_study_hold_no_password(tmp_path):
    config = resolve([("test", FLAGS)])
    assert config.log.tracking_uri == URI and config.flat()["tracking_uri"] == STORED
    assert run_key(config.flat()) == run_key(config.flat() | {"tracking_uri": None})
    RunDir.at(tmp_path / "run", config.flat() | {"tracking_uri": URI})
    assert SECRET not in (tmp_path / "run" / "config.yaml").read_text()
    study = SweepSpec("s", FLAGS | {"output_dir": str(tmp_path)}, {}, ({"tracking_uri": URI},))
    sweep_program.keep(study)
    text = (tmp_path / "study.yaml").read_text()
    assert SECRET not in text and yaml.safe_load(text)["fixed"]["tracking_uri"] == STORED


def test_jobs_have_the_password_in_memory_and_never_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    runs = SweepSpec(fixed=FLAGS | {"output_dir": str(tmp_path)}).resolved()
    job = Sweep(runs, RunIndex({str(tmp_path)})).job(runs, 1)
    assert job.arguments[1]["tracking_uri"] == URI and SECRET not in runs[0].command
    on_disk = moved_to_environment(job.arguments)  # what Slurm's jobs are given
    assert on_disk[1]["tracking_uri"] == STORED and on_disk[0] == job.arguments[0]
    assert mlflow_store.resolve_uri(STORED) == URI


@pytest.mark.slow
def test_no_file_of_a_run_or_of_its_artifacts_holds_the_password(tmp_path, monkeypatch, capsys):
    import mlflow  # noqa: F401  the program then calls it directly, here

    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    monkeypatch.setattr(mlflow_store, "completed", lambda given: uri)
    flags = ["--model", "er", "--n_epochs", "1", "--savecheck", "task", "--stop_after", "1"]
    where = ["--tracking_uri", URI, "--output_dir", str(tmp_path / "runs")]
    assert program.main([*flags, *where]) == 0
    (folder,) = (tmp_path / "runs").glob("*/*/*")
    assert program.main(["--resume", str(folder), "--stop_after", "0"]) == 0
    told = capsys.readouterr()
    assert SECRET not in told.out + told.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "results.json", "checkpoint.pt", "mlflow.db", "last.pt"} <= names
    assert len([path for path in files if path.name == "results.json"]) == 2, (
        "in the run and in its artifacts"
    )
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
