"""Accuracies of a run as they are measured, the time it takes, and where it computes."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engram.utils.metrics import accuracy_matrix, sampling
from engram.utils.metrics.measurements import VIEWS, CurvePoint, MemoryCounts
from engram.utils.training import environment, memorization_groups
from engram.utils.training.environment import Environment
from engram.utils.training.training_curve import TrainingCurve

# The memorization paper's names: task-IL numbers carry this suffix in forgetting, bwt and fwt.
SUFFIX = {"class_il": "", "task_il": "_mask_classes"}
# The means once more, under names of which MLflow makes the first sections of its charts; of a long title
# beside the assistant some 13 characters are shown, which tell these four apart.
MEANS = {
    "mean_acc_class_il": "class_il/accuracy",
    "mean_acc_task_il": "task_il/accuracy",
    "forgetting": "class_il/forgetting",
    "forgetting_mask_classes": "task_il/forgetting",
}
VALIDATION = "validation_"  # before the name of every number that was not measured on test data
SAMPLED = "sampled_"  # before the name of every number that --eval_tasks or --eval_samples may estimate
Matrix = NDArray[np.float64]


class AccuracyLog:
    """R per view (T, T), the untrained network's b (T,), evaluations inside tasks, what the memory held.

    validation: they are measured on held-out training data; sampled: those before the last task on some tasks
    or samples only (`--eval_tasks`, `--eval_samples`). The names of what is logged say so.
    """

    def __init__(self, n_tasks: int, scenario: str, validation: bool = False, sampled: bool = False):
        self.scenario, self.prefix, self.sampled = scenario, VALIDATION if validation else "", sampled
        self.R: dict[str, Matrix] = {view: np.full((n_tasks, n_tasks), np.nan) for view in VIEWS}
        # of R, from the choice of test samples alone: 0 where all of them were evaluated, NaN where none
        self.errors: dict[str, Matrix] = {view: np.full((n_tasks, n_tasks), np.nan) for view in VIEWS}
        self.b: Matrix = np.full(n_tasks, np.nan)
        self.curve: list[CurvePoint] = []
        self.memory: list[MemoryCounts] = []
        self.training = TrainingCurve()
        self.on_point: Callable[[], None] = lambda: None  # what is done after a new point of the curve
        # group of training samples by memorization → view → R; empty without scores
        self.groups: dict[str, dict[str, Matrix]] = {}
        self.group_sizes: dict[str, int] = {}  # samples of each in the tasks seen
        self.seconds = {"total": 0.0, "train": 0.0, "eval": 0.0, "data": 0.0}
        self.n_images = 0
        self.environments: list[Environment] = []  # of the processes that took steps, in order, each once
        self.peak_bytes = 0
        self._device: torch.device | None = None  # of this process, once it takes steps
        self._timed: list[str] = []  # what time counts as now, innermost last
        self._clock = time.monotonic()

    # --- time and machine ------------------------------------------------------------------------

    def update_timers(self) -> None:
        """Bring the seconds, which survive a resume, up to now."""
        now = time.monotonic()
        for name in ("total", *self._timed[-1:]):
            self.seconds[name] += now - self._clock
        self._clock = now

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Inside, time counts as `name` and no longer as what the block itself stands in."""
        self.update_timers()
        self._timed.append(name)
        try:
            yield
        finally:
            self.update_timers()
            self._timed.pop()

    def record_environment(self, device: torch.device, precision: str) -> None:
        """Note that this process takes the run's steps from here on, where and in which precision."""
        self._device = device
        current = Environment.of_this_process(device, precision)
        if current not in self.environments:
            self.environments.append(current)

    def add_data_seconds(self, seconds: float) -> None:
        """Count time that went into the data before this clock started."""
        self.seconds["data"] += seconds
        self.seconds["total"] += seconds

    def update(self) -> None:
        """Bring the seconds and the peak memory up to now."""
        self.update_timers()
        if self._device is not None:
            self.peak_bytes = max(self.peak_bytes, environment.peak_memory(self._device))

    # --- measurements ----------------------------------------------------------------------------

    def set_row(self, row: int, accuracies: Matrix, errors: Matrix | None = None) -> None:
        """Store an evaluation after task `row`: (tasks, 2 views) accuracies and their standard errors."""
        for column, view in enumerate(VIEWS):
            self.R[view][row, : len(accuracies)] = accuracies[:, column]
            self.errors[view][row, : len(accuracies)] = 0 if errors is None else errors[:, column]

    def set_groups(self, row: int, accuracies: Matrix, sizes: NDArray[np.int64]) -> None:
        """Store accuracies on groups of training samples after `row`: (tasks seen, groups, views).

        sizes: (groups,) how many samples each has in the tasks seen.
        """
        for g, group in enumerate(memorization_groups.NAMES):
            self.group_sizes[group] = int(sizes[g])
            empty = {view: np.full_like(self.R[view], np.nan) for view in VIEWS}
            matrices = self.groups.setdefault(group, empty)
            for column, view in enumerate(VIEWS):
                matrices[view][row, : len(accuracies)] = accuracies[:, g, column]

    def add_point(self, step: int, task: int, accuracies: Matrix) -> None:
        """Store an evaluation of the seen tasks made at a training step inside or at the end of `task`.

        The one at the end, after the method has consolidated, replaces one just before it.
        """
        if self.curve and self.curve[-1].step == step:
            self.curve.pop()
        views = {view: accuracies[: task + 1, i].tolist() for i, view in enumerate(VIEWS)}
        self.curve.append(CurvePoint(step, task, views))

    def add_losses(self, step: int, losses: list[float], optimizer: torch.optim.Optimizer | None) -> None:
        """Take in the losses read after `step` steps of the run, a loss for each step since the last time."""
        self.update_timers()
        lr = float(optimizer.param_groups[0]["lr"]) if optimizer else math.nan  # it changes between epochs
        train, total = self.seconds["train"], self.seconds["total"]
        if self.training.add(step, losses, lr, self.n_images, train, total):
            self.on_point()

    # --- what is made of them --------------------------------------------------------------------

    @property
    def forward_transfer(self) -> float:
        """FWT of the view in which unseen tasks can be predicted."""
        return accuracy_matrix.forward_transfer(self.R["task_il"], self.b)

    @property
    def images_per_second(self) -> float | None:
        """Speed while training; None before any training."""
        trained = self.seconds["train"]
        return self.n_images / trained if trained else None

    def is_sampled(self, row: int) -> bool:
        """Whether the row may be of some tasks or some of their test samples only."""
        return self.sampled and row < len(self.b) - 1

    def mean_of_seen(self, view: str, row: int) -> sampling.Estimate:
        """The mean accuracy over the tasks seen after task `row`, and its standard error."""
        return sampling.mean_of_seen(self.R[view][row, : row + 1], self.errors[view][row, : row + 1])

    def metrics(self, view: str) -> dict[str, float]:
        """The metrics of a view's R, and those of the evaluations inside tasks where there are any."""
        metrics = accuracy_matrix.summary(self.R[view])
        if self.curve:
            curve = [(point.task, np.array(point.accuracies[view])) for point in self.curve]
            metrics["min_acc"] = accuracy_matrix.min_accuracy(curve)
            metrics["wc_acc"] = accuracy_matrix.worst_case_accuracy(curve)
        return metrics

    def task_metrics(self, row: int) -> dict[str, float]:
        """What is logged after task `row`, in percent, under the memorization paper's names."""
        logged: dict[str, float] = {}
        for view in VIEWS:
            logged |= (
                self._sampled_metrics(view, row) if self.is_sampled(row) else self._view_metrics(view, row)
            )
        for group, views in self.groups.items():
            name, R = memorization_groups.NAMES[group], views["class_il"][: row + 1, : row + 1]
            logged |= {f"acc_{name}_task_{k}": R[row, k] for k in range(row + 1)}
            logged[f"forgetting_{name}"] = accuracy_matrix.mean_known_forgetting(R)
        if row == len(self.b) - 1:
            logged["fwt_mask_classes"] = self.forward_transfer
            if self.scenario == "domain-il":
                logged["fwt"] = self.forward_transfer
        logged |= {
            f"{mark}{name}": logged[mark + of_paper]
            for mark in ("", SAMPLED)
            for of_paper, name in MEANS.items()
            if mark + of_paper in logged
        }
        return {self.prefix + name: 100 * float(value) for name, value in logged.items()}

    def _view_metrics(self, view: str, row: int) -> dict[str, float]:
        """Fractions by name after task `row`, which evaluated all tasks seen."""
        R = self.R[view][: row + 1, : row + 1]
        return {
            f"mean_acc_{view}": accuracy_matrix.average_accuracy(R),
            **{f"acc_{view}_task_{k}": R[row, k] for k in range(row + 1)},
            f"forgetting{SUFFIX[view]}": accuracy_matrix.forgetting(R),
            f"bwt{SUFFIX[view]}": accuracy_matrix.backward_transfer(R),
        }

    def _sampled_metrics(self, view: str, row: int) -> dict[str, float]:
        """Fractions by name after task `row`, which evaluated some tasks or samples only."""
        mean, R, errors = self.mean_of_seen(view, row), self.R[view], self.errors[view]
        return {
            f"{SAMPLED}mean_acc_{view}": mean.mean,
            f"{SAMPLED}stderr_mean_acc_{view}": mean.error,
            **{f"{SAMPLED}acc_{view}_task_{k}": R[row, k] for k in range(row + 1)},
            **{f"{SAMPLED}stderr_acc_{view}_task_{k}": errors[row, k] for k in range(row + 1)},
            f"{SAMPLED}forgetting{SUFFIX[view]}": accuracy_matrix.mean_known_forgetting(
                R[: row + 1, : row + 1]
            ),
        }

    @property
    def mean_names(self) -> tuple[str, ...]:
        """Names of the number that is logged after every task; a task that has one of them is logged."""
        name = "mean_acc_class_il"
        return (self.prefix + name, *([self.prefix + SAMPLED + name] if self.sampled else []))

    def curve_metrics(self, task: int) -> list[tuple[int, dict[str, float]]]:
        """(training step, accuracies in percent) of the evaluations made while `task` was trained."""
        prefix = self.prefix + (SAMPLED if self.sampled else "")
        return [
            (
                point.step,
                {
                    f"{prefix}step_acc_{view}_task_{k}": 100 * accuracy
                    for view in VIEWS
                    for k, accuracy in enumerate(point.accuracies[view])
                },
            )
            for point in self.curve
            if point.task == task
        ]

    # --- in a checkpoint -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain lists."""
        self.update()
        return {
            "R": {view: R.tolist() for view, R in self.R.items()},
            "errors": {view: errors.tolist() for view, errors in self.errors.items()},
            "b": self.b.tolist(),
            "curve": [point.to_json() for point in self.curve],
            "memory": [counts.to_json() for counts in self.memory],
            "training": self.training.state_dict(),
            "groups": {g: {v: R.tolist() for v, R in views.items()} for g, views in self.groups.items()},
            "group_sizes": self.group_sizes,
            "seconds": self.seconds,
            "n_images": self.n_images,
            "origins": [asdict(e) for e in self.environments],
            "peak_bytes": self.peak_bytes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with what `state_dict` returned."""
        self.R = {view: np.array(R) for view, R in state["R"].items()}
        if "errors" in state:  # not in checkpoints from before it was kept
            self.errors = {view: np.array(errors) for view, errors in state["errors"].items()}
        self.b = np.array(state["b"])
        self.curve = [CurvePoint.from_json(point) for point in state["curve"]]
        self.memory = [MemoryCounts.from_json(counts) for counts in state["memory"]]
        groups = state.get("groups", {}).items()
        self.groups = {g: {v: np.array(R) for v, R in matrices.items()} for g, matrices in groups}
        self.group_sizes = state.get("group_sizes", {})
        self.seconds, self.n_images = state["seconds"], state["n_images"]
        if "training" in state:  # not in checkpoints from before it was kept
            self.training.load_state_dict(state["training"], self.n_images, self.seconds["train"])
        self.environments = [Environment.from_json(e) for e in state.get("origins", [])]
        self.peak_bytes = state.get("peak_bytes", 0)
