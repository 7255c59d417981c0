"""Measurements that a run makes beside R: at a training step, of the memory, of the machine."""

import math
from dataclasses import dataclass
from typing import Any

VIEWS = ("class_il", "task_il")  # the two evaluation views; in domain-IL both hold the same numbers
# Groups of metrics: MLflow makes a section of charts of the names that share what stands before the slash.
TRAINING, SYSTEM = "training/", "system/"
OF_THE_MACHINE = (SYSTEM, f"{TRAINING}images_per_second", f"{TRAINING}seconds")


def measures_machine(metric: str) -> bool:
    """Whether the metric of this name measures the machine: two equal runs have other values of it.

    Whoever compares two runs leaves these values out, and nothing else.
    """
    return metric.startswith(OF_THE_MACHINE)


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation made at training step `step`, inside or at the end of task `task`.

    accuracies: view → one fraction for each task seen so far, NaN where not evaluated (null in a file).
    """

    step: int
    task: int
    accuracies: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        """The point as it stands in results.json and in a checkpoint."""
        return {"step": self.step, "task": self.task, **self.accuracies}

    @classmethod
    def from_json(cls, point: dict[str, Any]) -> "CurvePoint":
        """The point that `to_json` wrote."""
        accuracies = {view: [math.nan if a is None else float(a) for a in point[view]] for view in VIEWS}
        return cls(int(point["step"]), int(point["task"]), accuracies)


@dataclass(frozen=True)
class MemoryCounts:
    """How many samples of each class and of each task a memory holds after task `task`."""

    task: int
    per_class: list[int]
    per_task: list[int]

    def to_json(self) -> dict[str, Any]:
        """The counts as they stand in results.json and in a checkpoint."""
        return {"task": self.task, "per_class": self.per_class, "per_task": self.per_task}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "MemoryCounts":
        """The counts that `to_json` wrote."""
        return cls(int(row["task"]), list(map(int, row["per_class"])), list(map(int, row["per_task"])))
