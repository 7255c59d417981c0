"""Parents of settings in MLflow: one for each, also when some of its seeds are older than a flag."""

import json
from pathlib import Path

import pytest

from engram.utils.config.consistency import MAX_NAME
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.sweeps import parent_runs
from engram.utils.tracking.experiment_view import address
from engram.utils.tracking.mlflow_tracker import open_tracker
from tests.conftest import tiny_config


class Store:
    """An experiment of its own in a store, and finished runs in it."""

    def __init__(self, folder: Path, uri: str):
        self.folder, self.uri = folder, uri

    def run(self, seed: int, without: str = "") -> str:
        """A run folder and its MLflow run; its configuration is from before the flag `without`."""
        named = {"tracking_uri": self.uri, "experiment_name": self.folder.name}
        config = tiny_config("er", seed=seed, disable_log=False, **named, run_name="x" * MAX_NAME)
        folder = self.folder / f"seed {seed}"
        folder.mkdir()
        tracker = open_tracker(config, folder)
        tracker.finish("finished")
        RunDir(folder).track(tracker.run_id, pending=False)
        flags = {name: value for name, value in config.flat().items() if name != without}
        view = {"R": [[0.5 + seed / 10]], "average_accuracy": 0.5 + seed / 10, "forgetting": None}
        document = {"config": flags, "status": "finished", "scenario": "class-il", "b": [0.1]}
        document |= {"seconds": {"total": 10.0 + 4 * seed}}
        (folder / "results.json").write_text(json.dumps(document | {"class_il": view, "task_il": view}))
        return str(folder)

    def parents(self) -> list[tuple[str, float]]:
        """(id, number of seeds) of each."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.uri)
        runs = client.search_runs([client.get_experiment_by_name(self.folder.name).experiment_id])
        return [(run.info.run_id, run.data.metrics["n"]) for run in runs if "setting" in run.data.tags]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def store(tmp_path, uri):
    return Store(tmp_path, uri)


def test_seeds_from_before_and_after_a_new_flag_have_one_parent(store, monkeypatch, capsys):
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(parent_runs, "PARAMS_PER_BATCH", 20)  # there may be more flags than a request takes
    old = [store.run(seed, without="keep_optimizer") for seed in (0, 1)]
    assert parent_runs.write_parents("digits", old, store.uri) == 0
    ((_, n),) = store.parents()
    assert n == 2
    both = [*old, store.run(2), store.run(3)]
    assert parent_runs.write_parents("digits", both, store.uri) == 0
    ((parent, n),) = store.parents()
    assert n == 4
    of_parent = MlflowClient(store.uri).get_run(parent)
    assert of_parent.info.run_name == "x" * (MAX_NAME - 9) + ": 4 seeds", "databases take no longer name"
    assert len(of_parent.data.params) > 50
    assert of_parent.info.end_time - of_parent.info.start_time == 16_000, "the mean of 10, 14, 18 and 22 s"
    capsys.readouterr()
    assert parent_runs.write_parents("digits", both, store.uri) == 0
    assert store.parents() == [(parent, 4)]
    told = capsys.readouterr().out
    assert told.startswith("browse:  mlflow ui") and address(of_parent.info.experiment_id) in told


def test_a_parent_holds_no_password_of_records_from_before_they_were_hidden(store):
    from mlflow.tracking import MlflowClient

    run = store.run(0)
    path = Path(run, "results.json")
    document = json.loads(path.read_text())
    # a flag that is gone: the configuration no longer resolves, which would hide the password
    document["config"] |= {"tracking_uri": "postgresql://me:s3cr3t@host/db", "flag_of_before": 1}
    path.write_text(json.dumps(document))
    assert parent_runs.write_parents("digits", [run], store.uri) == 0
    ((parent, _),) = store.parents()
    in_store = MlflowClient(store.uri).get_run(parent)
    assert in_store.data.params["tracking_uri"] == "postgresql://***@host/db"
    assert "s3cr3t" not in str(in_store.to_dictionary())


def test_a_parent_known_by_an_older_configuration_is_replaced(store, monkeypatch):
    """As the program wrote it before the flag: its setting is that of the configuration as it is stored."""
    old = [store.run(seed, without="keep_optimizer") for seed in (0, 1)]
    with monkeypatch.context() as before:
        before.setattr(RunRecord, "current_flags", lambda self: self.config)
        assert parent_runs.write_parents("digits", old, store.uri) == 0
    assert parent_runs.write_parents("digits", [*old, store.run(2)], store.uri) == 0
    assert [n for _, n in store.parents()] == [3]


@pytest.mark.parametrize(("evaluated_on", "prefix"), [("test", ""), ("validation", "validation_")])
def test_parents_hold_the_spread_of_the_seeds_on_either_data(tmp_path, evaluated_on, prefix):
    records = []
    for accuracy in (0.5, 0.7):
        view = {"R": [[accuracy]], "average_accuracy": accuracy, "forgetting": None}
        document = {
            "config": tiny_config("er").flat(),
            "status": "finished",
            "scenario": "class-il",
            "b": [0.1],
        }
        views = {"class_il": view, "task_il": view, "evaluated_on": evaluated_on}
        (tmp_path / "results.json").write_text(json.dumps(document | views))
        records.append(RunRecord.read(tmp_path))
    values = {name: value for _, name, value in parent_runs.statistics(records)}
    name = f"{prefix}mean_acc_class_il"
    # mean 60, s = 10 √2 over two seeds, and t(0.975, 1) · s / √2
    expected = [60, 14.142136, 127.062047]
    assert [values[name], values[f"{name}_std"], values[f"{name}_ci95"]] == pytest.approx(expected)
    assert {key.startswith("validation_") for key in values if key != "n"} == {bool(prefix)}
