import logging
import math
import os
import queue
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import engram
from engram.utils.config.config import Config, LogOptions, RunOptions, TrainOptions
from engram.utils.config.options import OptionSet
from engram.utils.config.registry import ROOT
from engram.utils.config.stream_options import StreamOptions
from engram.utils.config.version import GitState
from engram.utils.credentials import redact
from engram.utils.errors import UserError
from engram.utils.tracking import experiment_view as ev
from engram.utils.tracking import mlflow_store, mlflow_tracker, tracking_worker
from engram.utils.tracking.mlflow_tracker import MlflowTracker, NullTracker, open_tracker

# Imports once, then forks, so that all processes reach the store in the same moment.
WRITERS = """
import os, sys
from pathlib import Path
from tests.unit.test_tracking import make_config
from engram.utils.tracking import mlflow_store, mlflow_tracker
folder, n_writers = Path(sys.argv[1]), int(sys.argv[2])
uri = f"sqlite:///{folder}/mlflow.db"
mlflow_store.import_mlflow(uri)
def write(name):
    tracker = mlflow_tracker.open_tracker(make_config(tracking_uri=uri, run_name=str(name)), folder)
    for step in range(5):
        tracker.log_metrics({"mean_acc_class_il": 10.0 * step + name}, step)
    tracker.finish("finished")
    return tracker.active
for name in range(n_writers):
    if os.fork() == 0:
        os._exit(0 if write(name) else 1)
sys.exit(sum(os.wait()[1] for _ in range(n_writers)))
"""


def make_config(debug_mode: bool = False, **log) -> Config:
    run = RunOptions(model="er", seed=3, debug_mode=debug_mode)
    plugins = {name: OptionSet() for name in ("method", "benchmark", "architecture")}
    return Config(run=run, stream=StreamOptions(), train=TrainOptions(), log=LogOptions(**log), **plugins)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """Creating the tables takes seconds: done once, then copied."""
    folder = tmp_path_factory.mktemp("store with space%")
    open_tracker(make_config(tracking_uri=f"sqlite:///{folder}/mlflow.db"), folder).finish("finished")
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def read(tracker: MlflowTracker):
    return tracker._client.get_run(tracker.run_id)


def history(tracker: MlflowTracker, key: str) -> list[tuple[int, float]]:
    found = tracker._client.get_metric_history(tracker.run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def test_params_tags_and_name(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_tracker, "git_state", lambda: GitState("abc", True))
    config = make_config(tracking_uri=uri, experiment_name="CIFAR 100/b", run_name="er seed 3")
    tracker = open_tracker(config, tmp_path / "run")
    tracker.describe("class-IL accuracy 45.2 %")
    tracker.set_tags({"device": "cpu (2 threads)"})
    run = read(tracker)
    assert run.data.params == {name: str(value) for name, value in config.flat().items()}
    wanted = {"model": "er", "dataset": "seq-digits", "seed": "3", "device": "cpu (2 threads)"}
    assert run.data.tags.items() >= wanted.items()
    assert run.data.tags["mlflow.note.content"] == "class-IL accuracy 45.2 %"
    assert run.data.tags["run_dir"] == str(tmp_path / "run")
    assert {"host", "python", "torch", "mlflow.user"} <= set(run.data.tags)
    assert (run.data.tags["git"], run.data.tags["git_dirty"]) == ("abc", "true")
    assert (run.info.run_name, run.info.status) == ("er seed 3", "RUNNING")
    experiment = tracker._client.get_experiment(run.info.experiment_id)
    assert experiment.name == "CIFAR 100/b"
    assert experiment.artifact_location == f"file://{tmp_path}/mlruns/CIFAR_100_b"


def test_params_of_flags_from_elsewhere_hold_no_password(uri, tmp_path):
    tracker = MlflowTracker(uri, tmp_path)
    tracker.start(make_config().flat() | {"tracking_uri": "http://me:s3cr3t@host"}, None)
    assert read(tracker).data.params["tracking_uri"] == "http://***@host"


def test_default_names(uri, tmp_path):
    run = read(open_tracker(make_config(tracking_uri=uri), tmp_path))
    assert run.info.run_name == "er seq-digits, n_epochs 1, seed 3"


def test_an_experiment_has_our_view_and_an_older_one_gets_it(uri):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    old = client.create_experiment("old", tags={"theirs": "1", ev.VIEW_TAG: "{}"})
    for name in ("old", "new"):
        number = ev.experiment_id(client, uri, name)
        assert client.get_experiment(number).tags[ev.VIEW_TAG] == ev.view()
        assert f"/experiments/{number}/runs?" in ev.address(number)
    assert ev.experiment_id(client, uri, "old") == old and client.get_experiment(old).tags["theirs"] == "1"


def test_a_run_has_its_own_start_and_end(uri, tmp_path):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path, started=1_700_000_000.25)
    tracker.finish("finished", ended=1_700_000_007.5)
    info = read(tracker).info
    assert (info.start_time, info.end_time) == (1_700_000_000_250, 1_700_000_007_500)


def test_metrics_and_steps(uri, tmp_path):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path)
    tracker.log_metrics({"bwt": -10.0, "fwt": math.nan, "forgetting": None, "loss": math.inf}, step=4)
    tracker.log_metrics({"fwt": math.nan}, step=5)
    assert read(tracker).data.metrics == {"bwt": -10.0}
    assert history(tracker, "bwt") == [(4, -10.0)]


def test_history_longer_than_a_batch(uri, tmp_path):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path)
    rows = [(10 * i, {"loss": i / 2, "acc": float(i)}) for i in range(700)]
    tracker.log_history(rows)
    assert history(tracker, "loss") == [(10 * i, i / 2) for i in range(700)]
    assert tracker.logged_steps("acc") == {10 * i for i in range(700)}
    assert tracker.logged_steps("nothing") == set()


def test_artifacts(uri, tmp_path):
    tracker = open_tracker(make_config(tracking_uri=uri, experiment_name="new"), tmp_path)
    paths = [tmp_path / "results.json", tmp_path / "matrix.csv"]
    for path in paths:
        path.write_text(f"content of {path.name}")
    tracker.log_artifacts(paths)
    stored = (tmp_path / "mlruns" / "new" / tracker.run_id / "artifacts").iterdir()
    assert {p.name: p.read_text() for p in stored} == {p.name: p.read_text() for p in paths}
    listed = tracker._client.list_artifacts(tracker.run_id)
    assert sorted(file.path for file in listed) == ["matrix.csv", "results.json"]


def test_a_run_that_is_being_opened_gives_signs_of_life(uri, tmp_path, monkeypatch):
    calls, news, whole = queue.SimpleQueue(), [], (tmp_path / "mlflow.db").rename(tmp_path / "whole.db")
    monkeypatch.setattr(mlflow_store, "create_database", lambda path: shutil.copy(whole, path))
    calls.put(("start", (make_config(tracking_uri=uri).flat(), tmp_path, None, False)))
    calls.put(None)
    tracking_worker.serve(calls, lambda kind, content: news.append((kind, content)), uri)
    assert {kind for kind, _ in news} == {"state"} and all(active for _, (active, *_) in news)
    ids = [run_id for _, (_, run_id, _) in news]
    # MLflow is imported, the store is made, the experiment is asked for, the run is made; then it has an id
    assert ids[:4] == [None] * 4 and len(ids) > 5 and ids[-1] is not None


@pytest.mark.parametrize("answered", [True, False])
def test_a_request_that_was_repeated_leaves_one_run(uri, tmp_path, monkeypatch, answered):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    create_run = MlflowClient.create_run

    def a_slow_server(client, *arguments, **keywords):
        """It carries out each of three requests, the first two after nobody waits for them any more."""
        made = [create_run(client, *arguments, **keywords) for _ in range(3)]
        if answered:
            return made[-1]
        raise MlflowException("Read timed out")

    config = make_config(tracking_uri=uri)
    other = open_tracker(config, tmp_path / "other")  # of another folder: not to be touched
    later = MlflowClient(uri).create_run(
        read(other).info.experiment_id, start_time=1_800_000_000_000, tags={"run_dir": str(tmp_path)}
    )  # of the same folder, begun at another time: somebody else's
    monkeypatch.setattr(mlflow_store, "is_database", lambda uri: False)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", a_slow_server)
        tracker = MlflowTracker(uri, tmp_path)
        tracker.start(config.flat(), None, started=1_700_000_000.0)
        assert tracker.active == answered
    if not answered:
        tracker = MlflowTracker(uri, tmp_path)
        tracker.start(config.flat(), None, resumed=True)
    tracker.log_metrics({"bwt": 1.0}, 0)
    tracker.finish("finished")
    experiment = read(tracker).info.experiment_id
    runs = [
        run
        for run in tracker._client.search_runs([experiment])
        if run.data.tags["run_dir"].startswith(str(tmp_path))
    ]
    assert {run.info.run_id for run in runs} == {tracker.run_id, other.run_id, later.info.run_id}
    assert next(run for run in runs if run.info.run_id == tracker.run_id).data.metrics == {"bwt": 1.0}


@pytest.mark.parametrize(
    "status, stored",
    [("finished", "FINISHED"), ("failed", "FAILED"), ("killed", "KILLED"), ("interrupted", "KILLED")],
)
def test_finish(uri, tmp_path, status, stored):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path)
    tracker.finish(status)
    assert read(tracker).info.status == stored


def test_resume_continues_the_same_run(uri, tmp_path):
    first = open_tracker(make_config(tracking_uri=uri), tmp_path)
    for step in (0, 1):
        first.log_metrics({"mean_acc_class_il": 50.0 + step}, step)
    first.finish("interrupted")
    # MLflow refuses to change a parameter, but a resumed run may have other operational flags.
    resumed = open_tracker(make_config(tracking_uri=uri, checkpoint_every=1.0), tmp_path, first.run_id)
    assert resumed.run_id == first.run_id
    assert read(resumed).info.status == "RUNNING"
    for step in range(3):
        if step not in resumed.logged_steps("mean_acc_class_il"):
            resumed.log_metrics({"mean_acc_class_il": 50.0 + step}, step)
    assert history(resumed, "mean_acc_class_il") == [(0, 50.0), (1, 51.0), (2, 52.0)]


def test_resume_of_a_run_the_store_lacks(uri, tmp_path, caplog):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path, "0" * 32)
    assert tracker.active and tracker.run_id != "0" * 32
    assert [r.message for r in caplog.records] == [
        f"MLflow run {'0' * 32} is not in {uri}; a new one continues it"
    ]


def use(tracker, path: Path) -> None:
    """Everything the training side calls."""
    tracker.log_metrics({"a": 1.0}, 0)
    tracker.log_history([(1, {"a": 2.0})])
    assert tracker.logged_steps("a") == set()
    tracker.log_artifacts([path])
    tracker.describe("text")
    tracker.finish("finished")


@pytest.mark.parametrize("damage", ["removed", "junk", "no table"])
def test_store_that_fails_mid_run(uri, tmp_path, caplog, damage):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path / "run")
    database = tmp_path / "mlflow.db"
    if damage == "removed":
        database.unlink()
    elif damage == "junk":
        database.write_bytes(b"no database " * 100)
    else:
        with sqlite3.connect(database) as connection:
            connection.execute("DROP TABLE metrics")
        connection.close()
    caplog.clear()
    use(tracker, tmp_path)
    assert len(caplog.records) == 1
    record = caplog.records[0]
    assert record.levelno == logging.WARNING and "\n" not in record.message
    assert record.message.startswith("MLflow: logging metrics failed; nothing more is logged there, training")
    assert str(tmp_path / "run") in record.message
    assert not tracker.active and tracker.run_id


@pytest.mark.parametrize(
    "uri, reason",
    [
        ("http://me:secret@127.0.0.1:9", "Connection refused"),
        ("sqlite:////proc/no/mlflow.db", "No such file or directory"),
        ("carrier-pigeon://x", "unsupported URI"),
    ],
)
def test_store_that_cannot_be_opened(tmp_path, caplog, monkeypatch, uri, reason):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path)
    assert isinstance(tracker, NullTracker) and tracker.run_id is None and not tracker.active
    use(tracker, tmp_path)
    assert len(caplog.records) == 1
    assert reason in caplog.records[0].message and "secret" not in caplog.records[0].message


def test_a_bug_is_not_hidden(uri, tmp_path):
    tracker = open_tracker(make_config(tracking_uri=uri), tmp_path)
    with pytest.raises(TypeError):
        tracker._guarded("anything", lambda: 1 + None)


def test_passwords_are_not_shown():
    assert redact("postgresql://me:pa55@host/db") == "postgresql://***@host/db"
    assert mlflow_store.how_to_browse("http://me:pa55@host:5000") == "http://***@host:5000"


@pytest.mark.parametrize("flags", [{"disable_log": True}, {"debug_mode": True}])
def test_null_tracker_imports_no_mlflow(flags):
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_tracking import make_config\n"
        "from engram.utils.tracking.mlflow_tracker import open_tracker\n"
        f"tracker = open_tracker(make_config(**{flags!r}), Path('x'))\n"
        "tracker.log_metrics({'a': 1.0}, 0); tracker.finish('finished')\n"
        "print(tracker.run_id, sorted({'mlflow', 'torch', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None []\n"


def test_mlflow_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(UserError, match=r"MLflow cannot be imported .*--disable_log"):
        open_tracker(make_config(), tmp_path)


def test_an_installed_copy_has_its_store_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(engram, "is_installed", True)
    monkeypatch.chdir(tmp_path)
    assert mlflow_store.resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert mlflow_store.artifact_location("postgresql://h/db", "x") == f"{tmp_path.as_uri()}/mlruns/x"
    assert mlflow_store.how_to_browse(None) == "mlflow ui   then open http://127.0.0.1:5000"


def test_default_store_is_the_one_mlflow_ui_opens(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(ROOT)
    assert mlflow_store.resolve_uri(None) == f"sqlite:///{ROOT}/mlflow.db"
    assert mlflow_store.artifact_location(f"sqlite:///{ROOT}/mlflow.db", "x") == f"{ROOT.as_uri()}/mlruns/x"
    assert mlflow_store.artifact_location("postgresql+psycopg://h/db", "x") == f"{ROOT.as_uri()}/mlruns/x"
    assert mlflow_store.artifact_location("http://localhost:5000", "x") is None
    assert mlflow_store.how_to_browse(None, "/#/x") == "mlflow ui   then open http://127.0.0.1:5000/#/x"
    monkeypatch.chdir(tmp_path)  # another folder, where `mlflow ui` alone would open another store
    option = f"--backend-store-uri sqlite:///{ROOT}/mlflow.db"
    assert mlflow_store.how_to_browse(None) == f"mlflow ui {option}   then open http://127.0.0.1:5000"
    assert "'sqlite:////a b/m.db'" in mlflow_store.how_to_browse("sqlite:////a b/m.db")
    assert mlflow_store.how_to_browse("http://host:5/", "/#/x") == "http://host:5/#/x"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert mlflow_store.resolve_uri(None) == "http://server:5000"


def test_lock_that_is_never_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_store, "LOCK_SECONDS", 0.05)
    with mlflow_store.exclusive(tmp_path / "m.db"):
        with pytest.raises(TimeoutError, match=r"m\.db\.lock is held by another process"):
            with mlflow_store.exclusive(tmp_path / "m.db"):
                pass


def test_killed_while_creating_the_database(tmp_path):
    (tmp_path / "mlflow.db.new").write_bytes(b"half a database")
    tracker = open_tracker(make_config(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"), tmp_path)
    assert tracker.active and not (tmp_path / "mlflow.db.new").exists()


def test_processes_that_create_the_store_together(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WRITERS, str(tmp_path), "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    tracker.start(make_config(experiment_name="other").flat(), None)
    experiment = tracker._client.get_experiment_by_name("seq-digits")
    runs = tracker._client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["0", "1", "2", "3"]
    for run in runs:
        tracker.run_id, first = run.info.run_id, int(run.info.run_name)
        assert run.info.status == "FINISHED"
        assert history(tracker, "mean_acc_class_il") == [(s, 10.0 * s + first) for s in range(5)]


def test_silence_is_temporary():
    logging.getLogger("mlflow").setLevel(logging.INFO)
    with mlflow_store.quiet():
        assert not logging.getLogger("mlflow.store").isEnabledFor(logging.CRITICAL)
    assert logging.getLogger("mlflow").level == logging.INFO


def test_a_user_without_home_gets_one_for_mlflow(monkeypatch):
    def home():
        if "HOME" not in os.environ:
            raise RuntimeError("Could not determine home directory.")
        return Path(os.environ["HOME"])

    monkeypatch.setenv("HOME", "before")  # undone afterwards
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", home)
    mlflow_store.import_mlflow("sqlite:///m.db")
    assert Path(os.environ["HOME"]).is_dir()
