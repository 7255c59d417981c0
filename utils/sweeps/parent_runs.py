"""Parent runs: in MLflow, one parent for each setting of a sweep, with the runs of its seeds below it.

A parent holds, after every task, the mean over seeds under the metric's own name, so that its charts read
like a run's, and also `_std` (ddof = 1), `_ci95` (half-width of the 95 % interval) and, at the end, `n`. It
begins with its first run and lasts as long as its runs on average. It is made from the runs' records when
they have ended; training knows nothing of it.
"""

import hashlib
import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engram.utils.config import outside
from engram.utils.config.consistency import MAX_NAME
from engram.utils.config.run_key import run_key
from engram.utils.config.run_title import run_title
from engram.utils.credentials import redact
from engram.utils.metrics.statistics import mean_std_ci
from engram.utils.runs.pending import accuracy_log
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.deadline import within
from engram.utils.tracking.experiment_view import address, experiment_id
from engram.utils.tracking.mlflow_requests import milliseconds
from engram.utils.tracking.mlflow_tracker import METRICS_PER_BATCH, PARAMS_PER_BATCH, TAG_FLAGS, batches
from engram.utils.training.accuracy_log import VALIDATION

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Metrics of which the parent also holds the spread; of single tasks it holds the mean.
SPREAD_OF = ("mean_acc_", "forgetting", "bwt", "fwt")
MAX_SECONDS = 600.0  # for all parents of a sweep
VARYING = {"seed", "device"}  # tags that a setting as a whole does not have


@dataclass(frozen=True)
class LoggedRun:
    """A finished run: its id in MLflow, its record, and when it ended, in seconds since 1970."""

    id: str
    record: RunRecord
    ended: float

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return self.record.seconds.total or 0.0


def write_parents(sweep_name: str, paths: list[str], uri: str | None) -> int:
    """Write or renew the parents of the finished runs in the folders `paths`; returns an exit code.

    Prints how to open each experiment that holds some of them, which the sweep shows at its end.
    """
    uri = store.resolve_uri(uri)
    failures = store.import_mlflow(uri)
    settings: dict[str, list[LoggedRun]] = defaultdict(list)
    for run_dir in map(RunDir, map(Path, paths)):
        record = RunRecord.read(run_dir.path)
        if run_dir.tracking_id and record.finished:
            setting = run_key(record.current_flags() | {"seed": 0})
            settings[setting].append(LoggedRun(run_dir.tracking_id, record, run_dir.ended or time.time()))

    def write() -> set[str]:
        with store.exclusive(store.sqlite_path(uri)):
            return _write_all(sweep_name, settings, uri)

    try:
        with store.quiet():
            experiments = within(MAX_SECONDS, write)
    except failures as error:
        print(f"MLflow: the study's parent runs could not be written ({redact(str(error))})", file=sys.stderr)
        return 1
    for experiment in sorted(experiments):
        print(f"{store.BROWSE}{store.how_to_browse(uri, address(experiment))}")
    return 0


def _write_all(sweep_name: str, settings: dict[str, list[LoggedRun]], uri: str) -> set[str]:
    """Write the parents; returns the ids of the experiments that hold the runs."""
    from mlflow.tracking import MlflowClient

    client, experiments = MlflowClient(tracking_uri=uri), set()
    for setting, runs in settings.items():
        flags = runs[0].record.current_flags()
        experiment = experiment_id(client, uri, flags["experiment_name"] or outside.label(flags["dataset"]))
        experiments.add(experiment)
        children = hashlib.sha256(" ".join(sorted(run.id for run in runs)).encode()).hexdigest()[:12]
        # parents of before a flag was there are found by what their runs' configurations had
        settings_of_parents = {setting, *(run_key(run.record.config | {"seed": 0}) for run in runs)}
        quoted = sweep_name.replace("'", "''")
        filters = [f"tags.study = '{quoted}' and tags.setting = '{s}'" for s in sorted(settings_of_parents)]
        parents = [parent for text in filters for parent in client.search_runs([experiment], text)]
        if any(parent.data.tags.get("children") == children for parent in parents):
            continue
        for parent in parents:  # of fewer seeds: two sets of numbers at one step would spoil its charts
            client.delete_run(parent.info.run_id)
        tags = {"study": sweep_name, "setting": setting, "children": children}
        _write_parent(client, experiment, tags, runs)
    return experiments


def _write_parent(
    client: "MlflowClient", experiment: str, parent_tags: dict[str, str], runs: list[LoggedRun]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    records = [run.record for run in runs]
    flags = records[0].current_flags()
    tags = {name: str(flags[name]) for name in TAG_FLAGS if name in flags and name not in VARYING}
    tags |= parent_tags | {"evaluated_on": records[0].evaluated_on, "mlflow.note.content": headline(records)}
    n_seeds = f": {len(runs)} seeds"
    title = label(flags)[: MAX_NAME - len(n_seeds)] + n_seeds
    started = min(run.ended - run.seconds for run in runs)
    ended = started + sum(run.seconds for run in runs) / len(runs)
    parent = client.create_run(experiment, milliseconds(started), tags, title).info
    params = {name: value for name, value in flags.items() if name not in VARYING | {"run_name"}}
    stored = [Param(name, redact(str(value))) for name, value in params.items()]
    for params_of_batch in batches(stored, PARAMS_PER_BATCH):
        client.log_batch(parent.run_id, params=params_of_batch)
    metrics = [Metric(name, value, parent.start_time, step) for step, name, value in statistics(records)]
    for metrics_of_batch in batches(metrics, METRICS_PER_BATCH):
        client.log_batch(parent.run_id, metrics=metrics_of_batch)
    for run in runs:
        tag = [RunTag("mlflow.parentRunId", parent.run_id), RunTag("study", parent_tags["study"])]
        client.log_batch(run.id, tags=tag)
    client.set_terminated(parent.run_id, end_time=milliseconds(ended))


def label(flags: dict[str, Any]) -> str:
    """The run's name without its seed."""
    name = flags["run_name"] or run_title(flags)
    return name.replace(f", seed {flags['seed']}", "")


def statistics(records: list[RunRecord]) -> list[tuple[int, str, float]]:
    """(step, metric, value) of a parent run: what all seeds have measured, in percent."""
    n_tasks = records[0].n_tasks
    logged: list[tuple[int, str, float]] = []
    for row in range(n_tasks):
        metrics_of_seeds = [task_metrics(record, row) for record in records]
        for name in metrics_of_seeds[0]:
            seeds = mean_std_ci([metrics[name] for metrics in metrics_of_seeds])
            numbers = {name: seeds.mean}
            if name.removeprefix(VALIDATION).startswith(SPREAD_OF):
                numbers |= {f"{name}_std": seeds.std, f"{name}_ci95": seeds.ci95}
            logged += [(row, name, value) for name, value in numbers.items() if np.isfinite(value)]
    return [*logged, (n_tasks - 1, "n", float(len(records)))]


def task_metrics(record: RunRecord, row: int) -> dict[str, float]:
    """What a run logged after task `row`, in percent, but for groups of training samples."""
    return accuracy_log(replace(record, groups={})).task_metrics(row)


def headline(records: list[RunRecord]) -> str:
    """The numbers that a setting is known by, in percent, as mean ± standard deviation over seeds."""
    texts = []
    for view, name in records[0].view_names.items():
        for metric, word in (("average_accuracy", "accuracy"), ("forgetting", "forgetting")):
            values = [record.views[view].metric(metric) for record in records]
            if not any(map(math.isnan, values)):
                seeds = mean_std_ci(100 * np.array(values))
                spread = f" ± {seeds.std:.2f}" if seeds.n > 1 else ""
                texts.append(f"{name} {word} {seeds.mean:.2f}{spread} %")
    on = "" if records[0].evaluated_on == "test" else f" on {records[0].evaluated_on} data"
    return f"{'; '.join(texts)}{on} (mean ± standard deviation over {len(records)} seeds, ddof = 1)"
