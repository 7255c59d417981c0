"""Old MLflow file stores: read by our own parser, written into our store once."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from engram.scripts.interop import import_mlruns
from engram.utils.errors import UserError
from engram.utils.runs import legacy_runs
from engram.utils.tracking import legacy_file_store

T = 4


def accuracies(seed: int, n_tasks: int = T) -> np.ndarray:
    """A lower triangle of accuracies in percent."""
    draws = np.random.default_rng(seed)
    return np.tril(np.round(draws.uniform(20, 99, (n_tasks, n_tasks)), 2))


def write_run(folder: Path, seed: int, n_done: int = T, n_tasks: int = T, **more) -> str:
    """A run as the memorization paper's logger wrote it: every name's steps count from 0."""
    run_id = f"{seed:032x}"
    run = folder / run_id
    for part in ("params", "metrics", "tags", "artifacts"):
        (run / part).mkdir(parents=True)
    meta = {
        "run_id": run_id, "run_uuid": run_id, "run_name": f"maer seed {seed}", "status": 3,
        "start_time": 1700000000000 + seed, "end_time": 1700000060000 + seed, "lifecycle_stage": "active",
        "experiment_id": folder.name, "user_id": "someone", "tags": [],
    }  # fmt: skip
    (run / "meta.yaml").write_text(yaml.safe_dump(meta | more))
    params = {
        "model": "maer", "dataset": "seq-cifar100", "seed": seed, "buffer_size": 500, "buffer_policy": "min",
        "n_tasks": n_tasks, "n_epochs": 50, "lr": 0.1, "batch_size": 32, "conf_jobnum": f"job{seed}",
        "notes": None,
    }  # fmt: skip
    for name, value in params.items():
        (run / "params" / name).write_text(str(value))
    (run / "tags" / "mlflow.source.git.commit").write_text("f79dc447")
    R = accuracies(seed, n_tasks)
    for view, plus in (("class_il", 0), ("task_il", 1)):
        columns = {f"acc_{view}_task_{k}": R[k:n_done, k] + plus for k in range(n_done)}
        columns[f"mean_acc_{view}"] = [R[i, : i + 1].mean() + plus for i in range(n_done)]
        for name, values in columns.items():
            lines = [f"{1700000000000 + i} {value!r} {i}" for i, value in enumerate(map(float, values))]
            (run / "metrics" / name).write_text("\n".join(lines) + "\n")
    (run / "metrics" / "forgetting").write_text(
        "".join(f"1700000000000 {i}.5 {i}\n" for i in range(n_done - 1))
    )
    return run_id


@pytest.fixture
def old(tmp_path) -> Path:
    experiment = tmp_path / "mlruns" / "7"
    experiment.mkdir(parents=True)
    (experiment / "meta.yaml").write_text("experiment_id: '7'\nname: CIFAR100\nlifecycle_stage: active\n")
    for seed in (1, 2):
        write_run(experiment, seed)
    write_run(experiment, 3, n_done=2)
    write_run(experiment, 4, lifecycle_stage="deleted")
    return tmp_path / "mlruns"


def test_runs_are_read_and_steps_become_tasks(old):
    runs = {run.id: run for run in legacy_file_store.read(old)}
    assert len(runs) == 3, "the deleted one is left out"
    run = runs[f"{1:032x}"]
    assert (run.experiment, run.name, run.status) == ("CIFAR100", "maer seed 1", "FINISHED")
    assert [step for *_, step in run.metrics["acc_class_il_task_2"]] == [2, 3]
    assert [step for *_, step in run.metrics["forgetting"]] == [1, 2, 3]
    np.testing.assert_allclose(np.nan_to_num(legacy_file_store.matrix(run, "class_il")), accuracies(1) / 100)
    upper = np.triu_indices(T, 1)
    assert np.isnan(legacy_file_store.matrix(run, "task_il")[upper]).all()


def test_steps_that_are_tasks_already_stay():
    ours = {"mean_acc_class_il": [(0, 1.0, 0), (0, 2.0, 1)], "acc_class_il_task_1": [(0, 3.0, 1)]}
    assert legacy_file_store.aligned(ours) == ours


def test_documents_have_the_settings_and_the_metrics(old, tmp_path):
    runs = legacy_file_store.read(old)
    assert sum(legacy_runs.write_run_dir(run, tmp_path / "runs") for run in runs) == 3
    assert not any(legacy_runs.write_run_dir(run, tmp_path / "runs") for run in runs), "a second time"
    documents = [json.loads(p.read_text()) for p in sorted((tmp_path / "runs").glob("*/*/*/results.json"))]
    first = documents[0]
    assert first["config"]["buffer_size"] == 500 and first["config"]["lr"] == 0.1
    assert "conf_jobnum" not in first["config"], "what differs in every run is no setting"
    assert first["class_il"]["average_accuracy"] == pytest.approx(accuracies(1)[-1].mean() / 100)
    assert documents[2]["status"] != "finished" and documents[2]["class_il"]["R"][0][0] is not None


def test_imported_runs_stand_in_one_table(old, tmp_path, capsys):
    from engram.scripts import report

    assert import_mlruns.main([str(old), "--output_dir", str(tmp_path / "runs"), "--disable_log"]) == 0
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    mean = [accuracies(seed)[-1].mean() for seed in (1, 2)]
    row = f"| maer | {np.mean(mean):.2f} ± {np.std(mean, ddof=1):.2f} |"
    assert row in capsys.readouterr().out


@pytest.mark.slow
def test_import_into_mlflow_and_again(old, tmp_path, capsys):
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    flags = [str(old), "--output_dir", str(tmp_path / "runs"), "--tracking_uri", uri]
    assert import_mlruns.main(flags) == 0
    assert "3 runs found; new: 3 in MLflow, 3 run folders" in capsys.readouterr().out
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("CIFAR100").experiment_id
    runs = client.search_runs([experiment], "tags.buffer_policy = 'min' and params.seed = '1'")
    assert len(runs) == 1 and runs[0].info.run_name == "maer seed 1"
    history = client.get_metric_history(runs[0].info.run_id, "acc_class_il_task_1")
    assert {m.step: m.value for m in history} == {i: accuracies(1)[i, 1] for i in (1, 2, 3)}
    assert runs[0].info.start_time == 1700000000001 and runs[0].info.status == "FINISHED"
    assert runs[0].data.tags["mlflow.source.git.commit"] == "f79dc447"

    assert import_mlruns.main(flags) == 0
    assert "new: 0 in MLflow, 0 run folders" in capsys.readouterr().out
    assert len(client.search_runs([experiment])) == 3
    # killed in the middle of the next run: the half run is replaced
    half = client.create_run(experiment, tags={"imported_run": "x"}).info.run_id
    assert import_mlruns.main(flags) == 0
    assert half not in {run.info.run_id for run in client.search_runs([experiment])}


def test_a_run_of_the_papers_length_is_one_request(tmp_path, monkeypatch, capsys):
    """Ten tasks, 130 values and 10 parameters: so 100 runs take seconds, also on a server far away."""
    from mlflow.tracking import MlflowClient

    experiment = tmp_path / "mlruns" / "1"
    experiment.mkdir(parents=True)
    (experiment / "meta.yaml").write_text("experiment_id: '1'\nname: paper\n")
    for seed in range(3):
        write_run(experiment, seed, n_done=10, n_tasks=10)
    requests, log_batch = [], MlflowClient.log_batch

    def counted(self, run_id, metrics=(), params=(), **more):
        requests.append((len(metrics), len(params)))
        return log_batch(self, run_id, metrics, params, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    flags = [str(tmp_path / "mlruns"), "--output_dir", str(tmp_path / "runs")]
    flags += ["--tracking_uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert import_mlruns.main(flags) == 0
    assert "new: 3 in MLflow, 3 run folders" in capsys.readouterr().out
    n_values = 2 * (10 + 9 + 8 + 7 + 6 + 5 + 4 + 3 + 2 + 1) + 2 * 10 + 9  # of tasks, their means, forgetting
    assert requests == [(n_values, 11)] * 3
    assert import_mlruns.main(flags) == 0
    assert len(requests) == 3


def test_what_is_no_store(tmp_path):
    with pytest.raises(UserError, match="no MLflow file store with runs"):
        legacy_file_store.read(tmp_path)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "meta.yaml").write_text("experiment_id: '1'\nname: x\n")
    run = write_run(tmp_path / "e", 1)
    (tmp_path / "e" / run / "metrics" / "forgetting").write_text("not numbers\n")
    with pytest.raises(UserError, match="expected lines of time, value and step"):
        legacy_file_store.read(tmp_path)
