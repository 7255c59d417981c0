"""The record of a run, made of what its trainer has measured so far."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.utils.metrics import accuracy_matrix
from engram.utils.metrics.measurements import VIEWS
from engram.utils.runs.run_record import RunRecord, Seconds, ViewResult
from engram.utils.training import environment
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.ports import BatchT, Stream, TaskT


def evaluated_on(flags: dict[str, Any]) -> str:
    """The data that accuracies of a run with these flags are measured on: validation or test."""
    return "validation" if flags["validation"] else "test"


def record_of(
    results: AccuracyLog, status: str, config: dict[str, Any], benchmark: Stream[TaskT, BatchT]
) -> RunRecord:
    """The record of a run as far as it has come."""
    results.update()
    joined = environment.join(results.environments)
    return RunRecord(
        config=config,
        status=status,
        views={view: ViewResult(results.R[view], results.metrics(view)) for view in VIEWS},
        seed=config["seed"],
        scenario=results.scenario,
        evaluated_on=evaluated_on(config),
        fwt=results.forward_transfer,
        standard_errors=results.errors if results.sampled else {},
        b=results.b.tolist(),
        curve=results.curve,
        memory=results.memory,
        training=results.training.points,
        groups={group: _views_of_group(results, group) for group in results.groups},
        seconds=Seconds(**results.seconds),
        images_per_second=results.images_per_second,
        peak_memory_bytes=results.peak_bytes,
        device=joined.device,
        precision=joined.precision,
        versions=joined.versions,
        git_commit=joined.git_commit,
        git_dirty=joined.git_dirty,
        class_order=benchmark.class_order.tolist(),
        transforms={name: list(drawn) for name, drawn in benchmark.transforms.items()},
        split_hash=benchmark.split_hash or None,
    )


def _views_of_group(results: AccuracyLog, group: str) -> dict[str, ViewResult]:
    """View → accuracies on the training samples of a memorization group."""
    n_samples = results.group_sizes.get(group, math.nan)
    return {view: _view_of_group(R, n_samples) for view, R in results.groups[group].items()}


def _view_of_group(R: NDArray[np.float64], n_samples: float) -> ViewResult:
    """The accuracies on a group, and what is forgotten of the tasks that have a sample of it."""
    forgetting = accuracy_matrix.mean_known_forgetting(R)
    return ViewResult(R, {"forgetting": forgetting, "n_samples": n_samples})
