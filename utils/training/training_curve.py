"""Training curve: a sparse record of how training goes, made when losses are read anyway."""

import math
from dataclasses import asdict, dataclass
from typing import Any

MAX_POINTS = 100  # of a run
GROUP = "training/"  # MLflow makes a section of charts of what stands before the slash
LOSS = f"{GROUP}loss"  # a point that is logged has it


@dataclass(frozen=True)
class TrainingPoint:
    """The training up to `step` steps of the run, since the point before."""

    step: int
    loss: float  # mean over these steps
    learning_rate: float  # at the last of them
    images_per_second: float  # while training, without evaluation
    seconds: float  # since the run began, evaluation and data included

    def to_json(self) -> dict[str, float]:
        """The point as it stands in results.json and in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, point: dict[str, Any]) -> "TrainingPoint":
        """The point that `to_json` wrote."""
        names = ("loss", "learning_rate", "images_per_second", "seconds")
        numbers = [math.nan if point[name] is None else float(point[name]) for name in names]
        return cls(int(point["step"]), *numbers)

    def metrics(self) -> tuple[int, dict[str, float]]:
        """(step, what is logged there) under names that make a section of their own among MLflow's charts."""
        numbers = asdict(self)
        return int(numbers.pop("step")), {f"{GROUP}{name}": value for name, value in numbers.items()}


class TrainingCurve:
    """Collects losses, and makes a point of them when at least `every` steps have passed since the last one.

    `n_images` and `train_seconds` are counted from the beginning of the run.
    """

    def __init__(self, n_images: int = 0, train_seconds: float = 0.0):
        self.points: list[TrainingPoint] = []
        self.every = 1
        self._losses: list[float] = []
        self._n_images, self._train_seconds = n_images, train_seconds  # at the last point

    def plan(self, n_steps: int) -> None:
        """Let a run of so many steps have at most `MAX_POINTS` points."""
        self.every = max(1, -(-n_steps // MAX_POINTS))

    def add(self, losses: list[float]) -> bool:
        """Take in the losses of the steps since the last time; returns whether it is time for a point."""
        self._losses += losses
        return len(self._losses) >= self.every

    def make_point(
        self, step: int, learning_rate: float, n_images: int, train_seconds: float, seconds: float
    ) -> None:
        """Make a point of the losses taken in, at the run's step `step`."""
        speed = (n_images - self._n_images) / max(train_seconds - self._train_seconds, 1e-9)
        loss = sum(self._losses) / len(self._losses)
        self.points.append(TrainingPoint(step, loss, learning_rate, speed, seconds))
        self._losses, self._n_images, self._train_seconds = [], n_images, train_seconds

    def not_in(self, logged: set[int]) -> list[tuple[int, dict[str, float]]]:
        """What is to be logged of the points whose steps are not in `logged`."""
        return [point.metrics() for point in self.points if point.step not in logged]

    @classmethod
    def from_json(cls, points: list[dict[str, Any]], n_images: int, train_seconds: float) -> "TrainingCurve":
        """The curve of a run that is resumed; losses since its last point are left out of the next one."""
        curve = cls(n_images, train_seconds)
        curve.points = [TrainingPoint.from_json(point) for point in points]
        return curve
