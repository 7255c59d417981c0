"""Tracking import: the runs of an old file store, written into our MLflow store once."""

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from engram.utils.credentials import redact
from engram.utils.errors import UserError
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.deadline import within
from engram.utils.tracking.experiment_view import experiment_id
from engram.utils.tracking.legacy_file_store import OldRun
from engram.utils.tracking.mlflow_tracker import METRICS_PER_BATCH, PARAMS_PER_BATCH

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# The tag by which an imported run is recognised; a run of which only this arrived is still "RUNNING".
MARK = "imported_run"
SEARCHABLE = ("model", "dataset", "backbone", "seed", "buffer_size", "buffer_policy")
MAX_SECONDS = 600.0  # for one run, its artifacts included
MAX_VALUE = 5000  # characters of a parameter or tag; MLflow refuses longer ones


def write(runs: list[OldRun], uri: str | None) -> int:
    """Add what is not there yet; returns how many that were."""
    uri = store.resolve_uri(uri)
    failures = store.import_mlflow(uri)
    path = store.sqlite_path(uri)

    def prepare() -> tuple["MlflowClient", dict[str, str], set[str]]:
        with store.exclusive(path):
            if path is not None and not path.exists():
                store.create_database(path)
            return _prepare(runs, uri)

    def write_run(run: OldRun) -> None:
        with store.exclusive(path):  # one by one: runs in training want to log too
            _write_run(client, experiments[run.experiment], run)

    try:
        with store.quiet():
            client, experiments, imported = within(MAX_SECONDS, prepare)
            missing = [run for run in runs if run.id not in imported]
            for run in tqdm(missing, unit="run", disable=None):
                within(MAX_SECONDS, partial(write_run, run))
    except failures as error:
        raise UserError(f"MLflow {redact(uri)}: {redact(str(error))}") from None
    return len(missing)


def _prepare(runs: list[OldRun], uri: str) -> tuple["MlflowClient", dict[str, str], set[str]]:
    """(client, experiment name → id, ids of the old runs that are there whole)."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = {name: experiment_id(client, uri, name) for name in sorted({r.experiment for r in runs})}
    imported: set[str] = set()
    token = None
    while True:
        page = client.search_runs(
            list(experiments.values()), f"tags.{MARK} != ''", max_results=1000, page_token=token
        )
        for run in page:
            if run.info.status == "RUNNING":  # an import was killed here
                client.delete_run(run.info.run_id)
            else:
                imported.add(run.data.tags[MARK])
        token = page.token
        if not token:
            return client, experiments, imported


def _write_run(client: "MlflowClient", experiment: str, run: OldRun) -> None:
    from mlflow.entities import Metric, Param

    tags = {name: run.params[name] for name in SEARCHABLE if name in run.params}
    other_tags = {k: v for k, v in run.tags.items() if k not in ("mlflow.runName", "mlflow.parentRunId")}
    tags |= {name: value[:MAX_VALUE] for name, value in other_tags.items()}
    tags |= {"mlflow.runName": run.name, MARK: run.id}
    new = client.create_run(experiment, start_time=run.start, tags=tags, run_name=run.name).info.run_id
    params = [Param(name, value[:MAX_VALUE]) for name, value in run.params.items()]
    values = [
        Metric(name, value, time, step)
        for name, history in run.metrics.items()
        for time, value, step in history
    ]
    batches: dict[int, dict[str, Any]] = defaultdict(dict)
    for kind, items, size in (
        ("params", params, PARAMS_PER_BATCH),
        ("metrics", values, METRICS_PER_BATCH - PARAMS_PER_BATCH),
    ):
        for i in range(0, len(items), size):
            batches[i // size][kind] = items[i : i + size]
    for batch in batches.values():
        client.log_batch(new, **batch)
    if run.artifacts:
        client.log_artifacts(new, str(run.artifacts))
    status = run.status if run.status in ("FINISHED", "FAILED") else "KILLED"
    client.set_terminated(new, status, end_time=run.end or run.start)
