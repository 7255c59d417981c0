"""A run in MLflow: names, steps, tags and artifacts read back through its own client."""

import json
import sys

import numpy as np
import pytest

from engram import main as program
from engram.scripts import worker
from engram.scripts.dev.stored_metrics import comparable_metrics
from engram.utils.metrics.measurements import SYSTEM, TRAINING
from engram.utils.runs.run_dir import RunDir
from engram.utils.sweeps import parent_runs
from engram.utils.sweeps.run_index import RunIndex
from engram.utils.sweeps.sweep import Sweep
from engram.utils.sweeps.sweep_spec import SweepSpec
from engram.utils.tracking.mlflow_tracker import MlflowTracker

FLAGS = ["--model", "er", "--dataset", "seq-digits", "--n_epochs", "1", "--batch_size", "20"]


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """(client, run, results, flags) of one run, logged to a database of its own."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/store.db"
    flags = [*FLAGS, "--tracking_uri", uri, "--output_dir", str(folder / "runs")]
    named = ["--experiment_name", "digits test", "--run_name", "er by name"]
    assert program.main([*flags, *named, "--eval_every", "30"]) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits test")
    (run,) = client.search_runs([experiment.experiment_id])
    (path,) = (folder / "runs").glob("*/*/*/results.json")
    return client, run, json.loads(path.read_text()), path.parent


def history(client, run, name) -> dict[int, float]:
    points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
    assert len(dict(points)) == len(points), "a step was logged twice"
    return dict(points)


def test_metrics_are_the_papers_names_in_percent_by_task(logged):
    client, run, results, _ = logged
    R = 100 * np.array(results["class_il"]["R"], dtype=float)
    assert history(client, run, "mean_acc_class_il") == pytest.approx(
        {i: R[i, : i + 1].mean() for i in range(5)}
    )
    assert history(client, run, "acc_class_il_task_2") == pytest.approx({i: R[i, 2] for i in (2, 3, 4)})
    last = history(client, run, "forgetting")
    assert last[4] == pytest.approx(100 * results["class_il"]["forgetting"])
    for name, view in (("bwt_mask_classes", "task_il"), ("bwt", "class_il")):
        assert history(client, run, name)[4] == pytest.approx(100 * results[view]["bwt"])
    assert history(client, run, "fwt_mask_classes") == pytest.approx({4: 100 * results["fwt"]})


def expected_numbers(results: dict) -> dict[str, dict[int, float]]:
    """Name → step → percent of all that a class-incremental run logs, made anew from its results."""
    points: dict[str, dict[int, float]] = {}

    def put(name: str, step: int, share: float) -> None:
        points.setdefault(name, {})[step] = pytest.approx(100 * share, abs=1e-9)

    for view, end in (("class_il", ""), ("task_il", "_mask_classes")):
        R = results[view]["R"]
        for i in range(len(R)):
            put(f"mean_acc_{view}", i, sum(R[i][: i + 1]) / (i + 1))
            for k in range(i + 1):
                put(f"acc_{view}_task_{k}", i, R[i][k])
            if i:
                put(
                    f"forgetting{end}",
                    i,
                    sum(max(R[m][j] for m in range(j, i)) - R[i][j] for j in range(i)) / i,
                )
                put(f"bwt{end}", i, sum(R[i][j] - R[j][j] for j in range(i)) / i)
        for point in results["curve"]:
            for k, accuracy in enumerate(point[view]):
                put(f"step_acc_{view}_task_{k}", point["step"], accuracy)
    ahead = [results["task_il"]["R"][j - 1][j] - results["b"][j] for j in range(1, 5)]
    put("fwt_mask_classes", 4, sum(ahead) / 4)
    for view, end in (("class_il", ""), ("task_il", "_mask_classes")):  # the means, once more as a group
        points[f"{view}/accuracy"] = points[f"mean_acc_{view}"]
        points[f"{view}/forgetting"] = points[f"forgetting{end}"]
    return points


def expected_curve(results: dict) -> dict[str, dict[int, float]]:
    """Name → step → number of the training curve."""
    names = ("loss", "lr", "images_per_second", "seconds")
    return {
        f"training/{name}": {point["step"]: pytest.approx(point[name]) for point in results["training"]}
        for name in names
    }


def test_every_number_is_the_one_in_the_results_and_there_is_no_other(logged):
    client, run, results, _ = logged
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    assert {name: history(client, run, name) for name in names} == expected_numbers(results) | expected_curve(
        results
    )
    measured = {name for name in run.data.metrics if name.startswith("system/")}
    assert {"system/process_memory_usage_megabytes", "system/cpu_utilization_percentage"} <= measured
    assert all(list(history(client, run, name)) == [0, 1, 2, 3, 4] for name in measured)


def test_training_is_logged_at_few_steps_up_to_the_last(logged):
    client, run, results, _ = logged
    n_steps, steps = results["curve"][-1]["step"], list(history(client, run, "training/loss"))
    assert steps == [*range(1, n_steps + 1)] and n_steps < 100  # every step of so short a run
    assert set(history(client, run, "training/lr").values()) == {0.1}


def test_evaluations_inside_tasks_are_on_the_step_axis(logged):
    client, run, results, _ = logged
    steps = history(client, run, "step_acc_class_il_task_0")
    assert list(steps) == [point["step"] for point in results["curve"]]


def test_params_tags_name_and_status(logged):
    _, run, results, _ = logged
    assert run.data.params["buffer_size"] == "200" and run.data.params["lr"] == "0.1"
    assert set(results["config"]) <= set(run.data.params)
    tags = run.data.tags
    assert tags["model"] == "er" and tags["seed"] == "0" and tags["device"].startswith("cpu")
    assert tags["precision"] == results["precision"] == "fp32" and run.data.params["precision"] == "auto"
    assert {"host", "python", "torch"} <= set(tags)
    assert run.info.run_name == "er by name" and run.info.status == "FINISHED"
    assert f"{100 * results['class_il']['average_accuracy']:.1f}" in tags["mlflow.note.content"]


def test_artifacts(logged):
    client, run, _, _ = logged
    names = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert names == {
        "results.json", "config.yaml", "class_order.json", "curves.png", "stability.png",
        "memory.png",
        *(f"accuracy_matrix_{view}.{kind}" for view in ("class_il", "task_il") for kind in ("png", "csv")),
    }  # fmt: skip


def test_what_a_store_failed_to_take_the_next_start_sends(tmp_path, monkeypatch, caplog):
    """The store fails once, when task 1 is logged: the run's MLflow run is not left as it was then."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/store.db"
    real, seen = MlflowTracker._log_values, []

    def once(self, values):
        seen.append(values)
        if len(seen) == 2:
            raise OSError("the server is away")
        real(self, values)

    monkeypatch.setattr(MlflowTracker, "_log_values", once)
    assert program.main([*FLAGS, "--tracking_uri", uri, "--output_dir", str(tmp_path / "runs")]) == 0
    assert "nothing more is logged there" in caplog.text
    (path,) = (tmp_path / "runs").glob("*/*/*")
    before = json.loads((path / "results.json").read_text())
    client = MlflowClient(uri)
    ids = [client.get_experiment_by_name("seq-digits").experiment_id]
    (run,) = client.search_runs(ids)
    assert list(history(client, run, "mean_acc_class_il")) == [0] and not RunDir(path).finished
    assert worker.execute_run(str(path), before["config"]) == 0
    (run,) = client.search_runs(ids)
    assert list(history(client, run, "mean_acc_class_il")) == [0, 1, 2, 3, 4]
    assert run.info.status == "FINISHED" and RunDir(path).finished
    assert json.loads((path / "results.json").read_text())["class_il"] == before["class_il"]


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_store_that_is_away_at_the_start_gets_the_whole_run_later(tmp_path, monkeypatch, caplog, apart):
    from mlflow.tracking import MlflowClient

    if apart:  # as in a program that has not imported MLflow
        monkeypatch.delitem(sys.modules, "mlflow")
    (tmp_path / "store").write_text("a file where the database's folder should be")
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    flags = [*FLAGS, "--tracking_uri", uri, "--wait_for_log"]
    assert program.main([*flags, "--output_dir", str(tmp_path / "runs")]) == 0
    assert "nothing more is logged there" in caplog.text
    (path,) = (tmp_path / "runs").glob("*/*/*")
    assert not RunDir(path).logged and RunDir(path).tracking_id is None
    (tmp_path / "store").unlink()
    assert program.main(["--resume", str(path)]) == 0
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("seq-digits").experiment_id])
    assert list(history(client, run, "mean_acc_class_il")) == [0, 1, 2, 3, 4]
    assert run.info.status == "FINISHED" and RunDir(path).finished


@pytest.mark.parametrize("method", [["er"], ["joint", "--validation", "20"]])
def test_a_pending_run_without_its_checkpoint_is_sent_from_its_folder(tmp_path, caplog, method):
    """The store is away at the start, the checkpoint is gone: MLflow gets the same as of another run."""
    from mlflow.tracking import MlflowClient

    other, store = tmp_path / "other.db", tmp_path / "store" / "mlflow.db"
    store.parent.write_text("a file where the database's folder should be")
    flags = [*FLAGS, "--eval_every", "30", "--model", *method]
    for uri, output_dir in ((other, "whole"), (store, "runs")):
        placed = ["--tracking_uri", f"sqlite:///{uri}", "--output_dir", str(tmp_path / output_dir)]
        assert program.main([*flags, *placed]) == 0
    (path,) = (tmp_path / "runs").glob("*/*/*")
    (path / "checkpoint.pt").unlink()
    before = (path / "results.json").read_bytes()
    assert program.main(["--resume", str(path)]) == 0
    assert not RunDir(path).logged and "pending: " in (path / "log.txt").read_text(), "still away"
    store.parent.unlink()
    assert program.main(["--resume", str(path)]) == 0
    RunDir(path).track(RunDir(path).tracking_id, pending=True)  # as when the store is lost in the middle
    assert program.main(["--resume", str(path)]) == 0
    assert RunDir(path).finished and (path / "results.json").read_bytes() == before
    runs = []
    for client in (MlflowClient(f"sqlite:///{other}"), MlflowClient(f"sqlite:///{store}")):
        (run,) = client.search_runs([client.get_experiment_by_name("seq-digits").experiment_id])
        points = comparable_metrics(client, run.info.run_id)
        kept = run.data.params.keys(), run.data.tags["evaluated_on"], run.data.tags["mlflow.note.content"]
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        runs.append((points, run.info.status, *kept, files))
    assert runs[0] == runs[1]


def test_a_deleted_experiment_is_told_and_the_run_waits(logged, tmp_path, caplog):
    client, _, results, _ = logged
    name, uri = "deleted one", results["config"]["tracking_uri"]
    client.delete_experiment(number := client.create_experiment(name))
    flags = [*FLAGS, "--tracking_uri", uri, "--output_dir", str(tmp_path / "runs"), "--experiment_name", name]
    assert program.main(flags) == 0
    assert f"mlflow experiments restore -x {number}" in caplog.text
    (path,) = (tmp_path / "runs").glob("*/*/*")
    assert not RunDir(path).logged
    client.restore_experiment(number)
    assert program.main(["--resume", str(path)]) == 0
    assert len(client.search_runs([number])) == 1 and RunDir(path).finished


@pytest.mark.parametrize("kind", ["test", "validation"])
def test_validation_and_test_runs_share_no_column_of_the_store(tmp_path, kind):
    """Metrics have names of their own, and runs and parents are tagged; a second start logs nothing twice."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    held_out = ["--validation", "20"] if kind == "validation" else []
    flags = [*FLAGS, *held_out, "--eval_every", "30", "--tracking_uri", uri]
    assert program.main([*flags, "--output_dir", str(tmp_path / "runs")]) == 0
    (path,) = (tmp_path / "runs").glob("*/*/*")
    assert program.main(["--resume", str(path)]) == 0
    assert parent_runs.write_parents("study", [str(path)], uri) == 0
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("seq-digits").experiment_id])
    assert len(runs) == 2 and {run.data.tags["evaluated_on"] for run in runs} == {kind}
    names = {name for run in runs for name in run.data.metrics} - {"n"}
    names -= {name for name in names if name.startswith((SYSTEM, TRAINING))}  # which evaluate nothing
    assert {name.startswith("validation_") for name in names} == {kind == "validation"}
    assert any(name.endswith("mean_acc_class_il_ci95") or name.endswith("forgetting") for name in names)
    (own,) = [run for run in runs if "setting" not in run.data.tags]
    mean = ("validation_" if held_out else "") + "mean_acc_class_il"
    assert list(history(client, own, mean)) == [0, 1, 2, 3, 4]
    (parent,) = [run for run in runs if "setting" in run.data.tags]
    assert ("on validation data" in parent.data.tags["mlflow.note.content"]) == (kind == "validation")


def test_resuming_logs_nothing_twice(logged):
    client, run, _, folder = logged
    before = history(client, run, "mean_acc_class_il")
    assert program.main(["--resume", str(folder)]) == 0
    assert history(client, run, "mean_acc_class_il") == before
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_sweep_counts_the_runs_that_mlflow_lacks(tmp_path):
    fixed = {"model": "er", "output_dir": str(tmp_path)}
    study = Sweep(SweepSpec(fixed=fixed, grid={"seed": [0, 1, 2]}).resolved(), RunIndex({str(tmp_path)}))
    for n, path in enumerate(study.paths.values()):
        run_dir = RunDir.at(path, fixed)
        run_dir.results.write_text("{}")
        run_dir.track("id" if n else None, pending=n < 2)
    assert study.n_unlogged() == 2
