"""Run folders made of the runs in an old MLflow file store, so that reports read them like our own."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.utils.errors import UserError
from engram.utils.metrics import accuracy_matrix
from engram.utils.metrics.measurements import VIEWS
from engram.utils.runs.run_record import FILE_NAME, RunRecord, Seconds, ViewResult
from engram.utils.tracking.legacy_file_store import OldRun, matrix

# Parameters of mammoth and of the memorization paper that say where and when a run was made.
ADMINISTRATIVE = re.compile(
    r"conf_.*|wandb.*|nowand|notes|base_path|results_path|non_verbose|csv_log|tensorboard|disable_log|"
    r"debug_mode|run_name|experiment_name|device|distributed|num_workers|run_id"
)
JOINT = ("joint", "joint_gcl")  # trained once, on all tasks together
DOMAIN_IL = ("perm-mnist", "rot-mnist", "mnist-360")


def record_of(run: OldRun) -> RunRecord | None:
    """The record that an old run would have; None for one that logged no accuracies of single tasks."""
    matrices = {view: matrix(run, view) for view in VIEWS}
    measured = [R for R in matrices.values() if R is not None]
    if not measured:
        return None
    T = len(measured[0])
    empty = np.full((T, T), np.nan)
    config = _config_of(run)
    complete = {view: empty if R is None else R for view, R in matrices.items()}
    if config["model"] in JOINT:
        complete = {view: _only_last_row(R) for view, R in complete.items()}
    last = next(iter(complete[view][-1] for view in VIEWS if matrices[view] is not None))
    ended = config.get("n_tasks", T) in (T, None) and not np.isnan(last).all()
    return RunRecord(
        config=config,
        status="finished" if ended else "failed" if run.status == "FAILED" else "interrupted",
        views={view: ViewResult(R, accuracy_matrix.summary(R)) for view, R in complete.items()},
        seed=config["seed"],
        scenario="domain-il" if config["dataset"] in DOMAIN_IL else "class-il",
        b=[float("nan")] * T,
        seconds=Seconds(total=(run.end - run.start) / 1000 if run.end else None),
        device=run.params.get("device", "unknown"),
        git_commit=run.tags.get("mlflow.source.git.commit"),
        imported_run=run.id,
        ended=(run.end or run.start) / 1000,
    )


def write_run_dir(run: OldRun, output_dir: Path) -> bool:
    """Write a run folder; False where the run has no record or its folder is there already."""
    record = record_of(run)
    if record is None:
        return False
    path = (
        output_dir
        / _safe(record.config["dataset"])
        / _safe(record.config["model"])
        / _safe_id(run.id)
        / FILE_NAME
    )
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write(path)
    except OSError as error:
        raise UserError(f"--output_dir {output_dir}: cannot be written: {error}") from None
    return True


def _only_last_row(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of joint training, which learns all tasks at once: earlier rows are an untrained network's."""
    return np.where(np.arange(len(R))[:, None] == len(R) - 1, R, np.nan)


def _config_of(run: OldRun) -> dict[str, Any]:
    """The parameters that say what the run computes, with the types that they had."""
    params = {k: _typed(v) for k, v in run.params.items() if not ADMINISTRATIVE.fullmatch(k)}
    config = {"model": "unknown", "dataset": run.experiment} | params
    config |= {"run_name": run.name, "experiment_name": run.experiment}
    if not isinstance(config.get("seed"), int):  # drawn at random then: each run is a sample of its own
        hexadecimal = run.id if re.match("[0-9a-f]{7}", run.id) else _digest(run.id)
        config["seed"] = int(hexadecimal[:7], 16)
    return config


def _typed(text: str) -> Any:
    """`0.1` → 0.1, `None` → None, `[1, 2]` → [1, 2]; other words stay text."""
    words = {"None": None, "True": True, "False": False, "": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _safe(name: Any) -> str:
    """Name of one folder: at most 100 characters, those that a file name may not have as an underscore."""
    safe = re.sub(r"[^\w.-]+", "_", str(name))[:100]
    return safe if safe.strip(".") else "unnamed"  # `..` would lead out of the output folder


def _safe_id(run_id: str) -> str:
    """Name of a run's folder; an id that is no such name gets a digest, so that two of them stay apart."""
    safe = _safe(run_id)
    return safe if safe == run_id else f"{safe[:80]}-{_digest(run_id)[:12]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
