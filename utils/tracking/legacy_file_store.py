"""File store: MLflow's old `mlruns/` folders, read file by file.

    mlruns/EXPERIMENT/meta.yaml
    mlruns/EXPERIMENT/RUN/meta.yaml, params/NAME, tags/NAME, metrics/NAME (lines: time value step)

MLflow 3 refuses such stores. Nothing in them is executed or changed.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram.utils import yaml_files
from engram.utils.errors import UserError

logger = logging.getLogger(__name__)
STATUSES = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
MAX_TASKS = 10_000  # R has as many rows and columns
MAX_TEXT = 1 << 20  # characters of a parameter or tag that are read
MAX_HISTORY = 1 << 28  # characters of a metric's file
INT64 = 2**63
# Metrics logged once a task; the old logger numbered each name's values from 0.
PER_TASK = re.compile(r"(train_|mean_)?acc_.*|forgetting.*|[bf]wt.*")


@dataclass(frozen=True)
class OldRun:
    """One run: metrics are name → [(milliseconds, value, step)], steps as `aligned` left them."""

    id: str
    experiment: str
    name: str
    status: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float, int]]]
    artifacts: Path | None


def read(folder: Path) -> list[OldRun]:
    """Every run of the store, those in its trash left out."""
    metas = [path for pattern in ("meta.yaml", "*/meta.yaml") for path in sorted(folder.glob(pattern))]
    experiments = [path.parent for path in metas if "experiment_id" in _meta(path)]
    runs = [run for path in experiments if path.name != ".trash" for run in _runs_of(path)]
    if not runs:
        raise UserError(
            f"{folder}: no MLflow file store with runs; expected EXPERIMENT/meta.yaml and "
            "EXPERIMENT/RUN/meta.yaml"
        )
    return runs


def _runs_of(experiment: Path) -> Iterator[OldRun]:
    name = str(_meta(experiment / "meta.yaml").get("name", experiment.name))
    for path in sorted(experiment.glob("*/meta.yaml")):
        meta = _meta(path)
        if meta.get("lifecycle_stage", "active") == "active" and (meta.get("run_id") or meta.get("run_uuid")):
            yield _run(path.parent, meta, name)


def _run(folder: Path, meta: dict[str, Any], experiment: str) -> OldRun:
    artifacts = folder / "artifacts"
    tags = _texts(folder / "tags")
    status = meta.get("status", 3)
    return OldRun(
        id=str(meta.get("run_id") or meta["run_uuid"]),
        experiment=experiment,
        name=str(meta.get("run_name") or tags.get("mlflow.runName") or folder.name),
        status=STATUSES.get(status, str(status)),
        start=_time(meta, "start_time") or 0,
        end=_time(meta, "end_time"),
        params=_texts(folder / "params"),
        tags=tags,
        metrics=aligned(_histories(folder / "metrics")),
        artifacts=artifacts if artifacts.is_dir() and _copyable(artifacts) else None,
    )


def _time(meta: dict[str, Any], key: str) -> int | None:
    """Milliseconds since 1970, None where the file has no such time."""
    try:
        value = int(meta.get(key) or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 < value < INT64 else None


def _copyable(artifacts: Path) -> bool:
    """Whether there are artifacts; those with a link among them are left out: it may lead anywhere."""
    paths = list(artifacts.rglob("*"))
    if any(path.is_symlink() for path in (artifacts, *paths)):
        logger.warning(f"{artifacts}: holds links; the artifacts of this run are not imported")
        return False
    return bool(paths)


def _meta(path: Path) -> dict[str, Any]:
    try:
        content = yaml_files.read(path)
    except yaml_files.YamlFileError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return content if isinstance(content, dict) else {}


def _files(folder: Path, max_chars: int) -> Iterator[tuple[str, str]]:
    """Name and text of each file; links, which may lead out of the store, are no files of it."""
    if folder.is_symlink():
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(max_chars + 1)
            if len(text) > max_chars:
                raise UserError(
                    f"{path}: more than {max_chars >> 20} MB; no parameter or metric is that long"
                )
            yield path.relative_to(folder).as_posix(), text


def _texts(folder: Path) -> dict[str, str]:
    return dict(_files(folder, MAX_TEXT))


def _histories(folder: Path) -> dict[str, list[tuple[int, float, int]]]:
    histories = {}
    for name, text in _files(folder, MAX_HISTORY):
        lines = [line.split() for line in text.splitlines() if line.strip()]
        try:
            histories[name] = [
                (int(words[0]), float(words[1]), int(words[2]) if len(words) > 2 else i)
                for i, words in enumerate(lines)
            ]
            if any(not 0 <= number < INT64 for time, _, step in histories[name] for number in (time, step)):
                raise ValueError
        except (ValueError, IndexError):
            raise UserError(f"{folder / name}: expected lines of time, value and step") from None
    return histories


def aligned(histories: dict[str, list]) -> dict[str, list[tuple[int, float, int]]]:
    """The same with one axis for what is logged after each task: the index of the task just learned.

    A name that begins with a later task was numbered from 0 all the same: those of task k begin with it,
    others end with the last task. Names that already stand at their tasks, as ours do, stay.
    """
    n_rows = len(histories.get("mean_acc_class_il", []))
    result = {}
    for name, history in histories.items():
        steps = [step for *_, step in history]
        task = re.search(r"_task_(\d+)$", name)
        late = int(task[1]) if task else n_rows - len(history)
        if PER_TASK.fullmatch(name) and late > 0 and steps == list(range(len(steps))):
            history = [(time, value, step + late) for time, value, step in history]
        result[name] = history
    return result


def matrix(run: OldRun, view: str) -> np.ndarray | None:
    """R (T, T) as fractions, NaN where nothing was logged; None without accuracies of single tasks."""
    named = {k: re.fullmatch(rf"acc_{view}_task_(\d+)", k) for k in run.metrics}
    columns = {int(match[1]): run.metrics[k] for k, match in named.items() if match}
    if not columns:
        return None
    T = max(columns) + 1
    if T > MAX_TASKS:
        raise UserError(f"run {run.id!r}: a metric of task {T - 1}; at most {MAX_TASKS} tasks are imported")
    R = np.full((T, T), np.nan)
    for task, history in columns.items():
        for _, value, row in history:
            if row < T:
                R[row, task] = value / 100
    return R
