"""Records for tests of reports, made as if they had been read from run folders."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from engram.scripts.analysis.run_set import RunSet, StoredRecord, group
from engram.utils.metrics import accuracy_matrix


def view(R: list[list[float | None]] | np.ndarray, **metrics: float) -> dict:
    """A view of results.json: R and the metrics made of it, some of them replaced."""
    R = np.array(R, dtype=float)
    summary = accuracy_matrix.summary(R) | metrics
    return {"R": _without_nan(R.tolist()), **{name: _without_nan(value) for name, value in summary.items()}}


def stored_record(
    config: dict, folder: str = "runs/x", written: float = 0.0, accuracy: float = 0.5, **parts
) -> StoredRecord:
    """A finished run of two tasks with this flags; `parts` are keys of results.json."""
    R = view([[accuracy, None], [accuracy, accuracy]])
    document = {
        "config": config, "seed": config["seed"], "status": "finished", "scenario": "class-il",
        "evaluated_on": "test", "class_il": R, "task_il": R, "seconds": {"total": 1.0},
        "peak_memory_bytes": 2**20, "device": "cpu", "versions": {"torch": "2"}, "git_commit": "abc",
    }  # fmt: skip
    record = StoredRecord.from_json(document | parts)
    return replace(record, folder=Path(folder), written=written)


def run_set(*records: StoredRecord) -> RunSet:
    """The records grouped as a report groups them."""
    return group(records)


def _without_nan(value):
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if np.isnan(value) else value
