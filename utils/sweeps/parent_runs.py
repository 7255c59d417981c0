"""Tracking a study: one parent run for each setting, its seeds as child runs below it in the browser.

The parent holds, after every task, the mean over seeds under the metric's own name, so that its charts
read like a run's, and at the end `_std` (ddof = 1), `_ci95` (half-width of the 95 % interval) and `n`.
It is made from results.json when runs have ended; training knows nothing of it.
"""

import hashlib
import json
import logging
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from engram.utils.config.config import up_to_date
from engram.utils.config.run_key import run_key
from engram.utils.metrics.statistics import mean_std_ci
from engram.utils.runs.run_dir import RunDir
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.mlflow_tracker import METRICS_PER_BATCH, TAG_FLAGS, experiment_id
from engram.utils.training.accuracy_log import VIEWS, AccuracyLog

logger = logging.getLogger(__name__)
# Metrics of which the parent also holds the spread; of single tasks it holds the mean.
SPREAD_OF = ("mean_acc_", "forgetting", "bwt", "fwt")
VARYING = {"seed", "device"}  # tags that a setting as a whole does not have


def log(name: str, folders: list[str], uri: str | None) -> int:
    """Write or renew the parents of the finished runs in `folders`; returns an exit code."""
    where = store.resolve_uri(uri)
    failures = store.import_mlflow(where)
    settings = defaultdict(list)
    for folder in map(RunDir, map(Path, folders)):
        document = json.loads(folder.results.read_text(encoding="utf-8"))
        if folder.tracking_id and document["status"] == "finished":
            setting = run_key(up_to_date(document["config"]) | {"seed": 0})
            settings[setting].append((folder.tracking_id, document))
    try:
        with store.quiet(), store.exclusive(store.sqlite_path(where)):
            _write(name, settings, where)
    except failures as error:
        print(f"MLflow: the study's parent runs could not be written ({error})", file=sys.stderr)
        return 1
    return 0


def _write(name: str, settings: dict[str, list[tuple[str, dict]]], uri: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    for key, runs in settings.items():
        flags = up_to_date(runs[0][1]["config"])
        experiment = experiment_id(client, uri, flags["experiment_name"] or flags["dataset"])
        children = [run_id for run_id, _ in runs]
        mark = hashlib.sha256(" ".join(sorted(children)).encode()).hexdigest()[:12]
        quoted = name.replace("'", "''")
        # parents of before a flag was there are known by what their runs' configurations had
        keys = {key, *(run_key(document["config"] | {"seed": 0}) for _, document in runs)}
        filters = [f"tags.study = '{quoted}' and tags.setting = '{k}'" for k in sorted(keys)]
        known = [run for text in filters for run in client.search_runs([experiment], text)]
        if any(run.data.tags.get("children") == mark for run in known):
            continue
        for run in known:  # of fewer seeds: two sets of numbers at one step would spoil its charts
            client.delete_run(run.info.run_id)
        _write_parent(client, experiment, {"study": name, "setting": key, "children": mark}, runs)


def _write_parent(client: Any, experiment: str, own_tags: dict, runs: list[tuple[str, dict]]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    documents = [document for _, document in runs]
    flags = up_to_date(documents[0]["config"])
    tags = {n: str(flags[n]) for n in TAG_FLAGS if n in flags and n not in VARYING}
    tags |= own_tags | {"mlflow.note.content": headline(documents)}
    title = f"{label(flags)}: {len(runs)} seeds"
    parent = client.create_run(experiment, run_name=title, tags=tags).info
    params = {n: v for n, v in flags.items() if n not in VARYING | {"run_name"}}
    stored = [Param(n, store.redact(str(v))) for n, v in params.items()]
    client.log_batch(parent.run_id, params=stored[:100])
    values = [Metric(*value, parent.start_time, step) for step, value in statistics(documents)]
    for i in range(0, len(values), METRICS_PER_BATCH):
        client.log_batch(parent.run_id, metrics=values[i : i + METRICS_PER_BATCH])
    for child, _ in runs:
        tag = [RunTag("mlflow.parentRunId", parent.run_id), RunTag("study", own_tags["study"])]
        client.log_batch(child, tags=tag)
    client.set_terminated(parent.run_id)


def label(flags: dict[str, Any]) -> str:
    """The run's name without its seed; else the method and the benchmark."""
    name = (flags["run_name"] or "").replace(f", seed {flags['seed']}", "")
    return name or f"{flags['model']} {flags['dataset']}"


def statistics(documents: list[dict]) -> list[tuple[int, tuple[str, float]]]:
    """(step, (metric, value)) of a parent run: what all seeds have measured."""
    n_tasks = len(documents[0]["class_il"]["R"])
    found = []
    for row in range(n_tasks):
        of_seeds = [metrics_of(document, row) for document in documents]
        for name in of_seeds[0]:
            seeds = mean_std_ci([metrics[name] for metrics in of_seeds])
            numbers = {name: seeds.mean}
            if name.startswith(SPREAD_OF):
                numbers |= {f"{name}_std": seeds.std, f"{name}_ci95": seeds.ci95}
            found += [(row, item) for item in numbers.items() if np.isfinite(item[1])]
    return [*found, (n_tasks - 1, ("n", float(len(documents))))]


def metrics_of(document: dict, row: int) -> dict[str, float]:
    """What a run logged after task `row`."""
    results = AccuracyLog(len(document["b"]), document["scenario"])
    for view in VIEWS:
        results.R[view] = np.array(document[view]["R"], dtype=np.float64)
    results.b = np.array(document["b"], dtype=np.float64)
    return results.task_metrics(row)


def headline(documents: list[dict]) -> str:
    """The numbers that a setting is known by, in percent."""
    parts = []
    domain = documents[0]["scenario"] == "domain-il"
    for view, name in {"class_il": "domain-IL" if domain else "class-IL", "task_il": "task-IL"}.items():
        if domain and view == "task_il":
            continue
        for metric, word in (("average_accuracy", "accuracy"), ("forgetting", "forgetting")):
            values = [document[view][metric] for document in documents]
            if None not in values:
                seeds = mean_std_ci(100 * np.array(values))
                about = f" ± {seeds.std:.2f}" if seeds.n > 1 else ""
                parts.append(f"{name} {word} {seeds.mean:.2f}{about} %")
    return f"{'; '.join(parts)} (mean ± standard deviation over {len(documents)} seeds, ddof = 1)"
