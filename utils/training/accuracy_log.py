"""Results: the accuracy matrices of a run as they grow, and the document that results.json holds."""

import json
import platform
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
import torch

from engram.utils import distributed
from engram.utils.config.config import git_commit
from engram.utils.metrics import accuracy_matrix
from engram.utils.training import interleaved, memorization_groups

VIEWS = ("class_il", "task_il")
# The memorization paper's names: task-IL numbers carry this suffix in forgetting, bwt and fwt.
SUFFIX = {"class_il": "", "task_il": "_mask_classes"}


class AccuracyLog:
    """R per view (T, T), the untrained network's b (T,), evaluations inside tasks, what the memory held."""

    def __init__(self, n_tasks: int, scenario: str):
        self.scenario = scenario
        self.R = {view: np.full((n_tasks, n_tasks), np.nan) for view in VIEWS}
        self.b = np.full(n_tasks, np.nan)
        self.curve: list[dict[str, Any]] = []
        self.memory: list[dict[str, Any]] = []
        # group of training samples by memorization → view → R; empty without scores
        self.groups: dict[str, dict[str, np.ndarray]] = {}
        self.seconds = {"total": 0.0, "train": 0.0, "eval": 0.0, "data": 0.0}
        self.n_images = 0
        self.origins: list[dict[str, Any]] = []  # of the processes that took steps, in order, each once
        self.peak_bytes = 0
        self._device: torch.device | None = None  # of this process, once it takes steps
        self._running: list[str] = []  # what time counts as now, innermost last
        self._clock = time.monotonic()

    def tick(self) -> None:
        """Bring the times, which survive a resume, up to now."""
        now = time.monotonic()
        for what in ("total", *self._running[-1:]):
            self.seconds[what] += now - self._clock
        self._clock = now

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Inside, time counts as `what`, and not as what this itself is inside of."""
        self.tick()
        self._running.append(what)
        try:
            yield
        finally:
            self.tick()
            self._running.pop()

    def begin_process(self, device: torch.device) -> None:
        """From here on this process takes the steps: where it runs, and what, is told with the results."""
        self._device = device
        origin = {"git_commit": git_commit(), "device": device_name(device), "versions": versions()}
        if origin not in self.origins:
            self.origins.append(origin)

    def add_data(self, seconds: float) -> None:
        """Count time that went into the data before this clock started."""
        self.seconds["data"] += seconds
        self.seconds["total"] += seconds

    def set_row(self, row: int, accuracies: np.ndarray) -> None:
        """Store an evaluation after task `row`; `accuracies` is (tasks evaluated, 2 views)."""
        for column, view in enumerate(VIEWS):
            self.R[view][row, : len(accuracies)] = accuracies[:, column]

    def set_groups(self, row: int, accuracies: np.ndarray) -> None:
        """Store accuracies on groups of training samples after `row`: (tasks seen, groups, views)."""
        for g, group in enumerate(memorization_groups.NAMES):
            own = self.groups.setdefault(group, {view: np.full_like(self.R[view], np.nan) for view in VIEWS})
            for column, view in enumerate(VIEWS):
                own[view][row, : len(accuracies)] = accuracies[:, g, column]

    def add_point(self, step: int, task: int, accuracies: np.ndarray) -> None:
        """Store an evaluation of the seen tasks made at a training step inside or at the end of `task`.

        The one at the end, after the method has consolidated, replaces one just before it.
        """
        if self.curve and self.curve[-1]["step"] == step:
            self.curve.pop()
        views = {view: accuracies[: task + 1, i].tolist() for i, view in enumerate(VIEWS)}
        self.curve.append({"step": step, "task": task, **views})

    def add_memory(self, task: int, counts: dict[str, list[int]] | None) -> None:
        """Store how many samples of each class and task a memory holds after `task`."""
        if counts:
            self.memory.append({"task": task, **counts})

    @property
    def forward_transfer(self) -> float:
        """FWT of the view in which unseen tasks can be predicted."""
        return accuracy_matrix.forward_transfer(self.R["task_il"], self.b)

    def task_metrics(self, row: int) -> dict[str, float]:
        """What is logged after task `row`, in percent, under the memorization paper's names."""
        logged = {}
        for view in VIEWS:
            R = self.R[view][: row + 1, : row + 1]
            logged[f"mean_acc_{view}"] = accuracy_matrix.average_accuracy(R)
            logged |= {f"acc_{view}_task_{k}": R[row, k] for k in range(row + 1)}
            logged[f"forgetting{SUFFIX[view]}"] = accuracy_matrix.forgetting(R)
            logged[f"bwt{SUFFIX[view]}"] = accuracy_matrix.backward_transfer(R)
        for group, views in self.groups.items():
            name, R = memorization_groups.NAMES[group], views["class_il"][: row + 1, : row + 1]
            logged |= {f"acc_{name}_task_{k}": R[row, k] for k in range(row + 1)}
            logged[f"forgetting_{name}"] = accuracy_matrix.mean_known_forgetting(R)
        if row == len(self.b) - 1:
            logged["fwt_mask_classes"] = self.forward_transfer
            if self.scenario == "domain-il":
                logged["fwt"] = self.forward_transfer
        return {name: 100 * float(value) for name, value in logged.items()}

    def curve_metrics(self, task: int) -> list[tuple[int, dict[str, float]]]:
        """(training step, accuracies in percent) of the evaluations made while `task` was trained."""
        rows = []
        for point in self.curve:
            if point["task"] == task:
                named = {f"step_acc_{v}_task_{k}": 100 * a for v in VIEWS for k, a in enumerate(point[v])}
                rows.append((point["step"], named))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain lists."""
        self._update()
        return {
            "R": {view: R.tolist() for view, R in self.R.items()},
            "b": self.b.tolist(),
            "curve": self.curve,
            "memory": self.memory,
            "groups": {g: {v: R.tolist() for v, R in views.items()} for g, views in self.groups.items()},
            "seconds": self.seconds,
            "n_images": self.n_images,
            "origins": self.origins,
            "peak_bytes": self.peak_bytes,
        }

    def _update(self) -> None:
        """Bring times and peak memory up to now."""
        self.tick()
        if self._device is not None:
            self.peak_bytes = max(self.peak_bytes, peak_memory(self._device))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.R = {view: np.array(R) for view, R in state["R"].items()}
        self.b = np.array(state["b"])
        self.curve, self.memory = state["curve"], state["memory"]
        self.groups = {
            g: {v: np.array(R) for v, R in own.items()} for g, own in state.get("groups", {}).items()
        }
        self.seconds, self.n_images = state["seconds"], state["n_images"]
        self.origins, self.peak_bytes = state.get("origins", []), state.get("peak_bytes", 0)

    def view_document(self, view: str) -> dict[str, Any]:
        """R and its metrics, and those of the evaluations inside tasks where there are any."""
        document = {"R": self.R[view].tolist(), **accuracy_matrix.summary(self.R[view])}
        if self.curve:
            curve = [(point["task"], np.array(point[view])) for point in self.curve]
            document["min_acc"] = accuracy_matrix.min_accuracy(curve)
            document["wc_acc"] = accuracy_matrix.worst_case_accuracy(curve)
        return document

    def groups_document(self) -> dict[str, Any]:
        """R and forgetting of each group and view."""
        return {
            group: {
                v: {"R": R.tolist(), "forgetting": accuracy_matrix.mean_known_forgetting(R)}
                for v, R in own.items()
            }
            for group, own in self.groups.items()
        }

    def document(self, status: str, config: dict, benchmark: Any) -> dict[str, Any]:
        """The content of results.json (DESIGN: fractions, NaN as null)."""
        self._update()
        trained = self.seconds["train"]
        document = {
            "config": config,
            "seed": config["seed"],
            "status": status,
            "scenario": self.scenario,
            "evaluated_on": "validation" if config["validation"] else "test",
            **{view: self.view_document(view) for view in VIEWS},
            "fwt": self.forward_transfer,
            "b": self.b.tolist(),
            "curve": self.curve,
            "memory": self.memory,
            "groups": self.groups_document(),
            "seconds": self.seconds,
            "images_per_second": self.n_images / trained if trained else None,
            "peak_memory_bytes": self.peak_bytes,
            **joined(self.origins),
            "class_order": benchmark.class_order.tolist(),
            "transforms": benchmark.transforms,
        }
        return without_nan(document)


def joined(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several: each thing as the processes had it, `1.0, 1.1` where they differ."""
    packages = dict.fromkeys(package for origin in origins for package in origin["versions"])
    return {
        "device": listed(origin["device"] for origin in origins),
        "versions": {p: listed(origin["versions"].get(p) for origin in origins) for p in packages},
        "git_commit": listed(origin["git_commit"] for origin in origins),
    }


def listed(values: Iterable[str | None]) -> str | None:
    """The different ones of those that are known, in their order."""
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def to_json(document: dict[str, Any]) -> str:
    """Compact where it is long (matrices, orders), readable at the top level."""
    lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def without_nan(value: Any) -> Any:
    """The same with NaN as None, which is null in JSON."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA allocated, or the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    """`cuda (NVIDIA H100)` or `cpu (x86_64, 2 threads)`; several processes or runs in it are told."""
    times = f"{distributed.world_size()} x " if distributed.world_size() > 1 else ""
    times = f"shared by {interleaved.n_runs()} runs: " if interleaved.n_runs() > 1 else times
    if device.type == "cuda":
        return f"{times}{device} ({torch.cuda.get_device_name(device)})"
    return f"{times}cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
