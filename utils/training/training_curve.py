"""Training curve: loss, learning rate and speed at few steps of a run, which do not depend on the machine."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from engram.utils.metrics.measurements import TRAINING

MAX_POINTS = 100  # of a run, and one more at its last step
LOSS = f"{TRAINING}loss"  # every point that was logged has it


@dataclass(frozen=True)
class TrainingPoint:
    """The training up to `step` steps of the run, since the point before.

    Speed and time are those of the moment when losses were read from the device, at most some seconds later:
    several points may share them, and two equal runs differ in them, but in nothing else.
    """

    step: int
    loss: float  # mean over these steps
    lr: float  # NaN for a method without an optimizer
    images_per_second: float  # since losses were read before, evaluation left out
    seconds: float  # since the run began, evaluation and data included

    def to_json(self) -> dict[str, float]:
        """The point as it stands in results.json and in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, point: dict[str, Any]) -> "TrainingPoint":
        """The point that `to_json` wrote."""
        names = ("loss", "lr", "images_per_second", "seconds")
        numbers = [math.nan if point[name] is None else float(point[name]) for name in names]
        return cls(int(point["step"]), *numbers)

    def metrics(self) -> tuple[int, dict[str, float]]:
        """(step, what is logged there) under names that make a section of their own among MLflow's charts."""
        numbers = asdict(self)
        return int(numbers.pop("step")), {f"{TRAINING}{name}": value for name, value in numbers.items()}


class TrainingCurve:
    """Makes a point of the losses at every step of the run that `every` divides, and at its last one.

    It is told the losses when they are read anyway, of many steps at once; the points are the same however
    the steps are divided among these readings, also in a run that is resumed between two points.
    """

    def __init__(self) -> None:
        self.points: list[TrainingPoint] = []
        self.every, self.n_steps = 1, 0
        self._sum, self._n = 0.0, 0  # of the losses since the last point
        self._n_images, self._train_seconds = 0, 0.0  # of the run when losses were read before

    def plan(self, n_steps: int) -> None:
        """Let a run of so many steps have about `MAX_POINTS` points."""
        self.every, self.n_steps = max(1, -(-n_steps // MAX_POINTS)), n_steps

    def add(
        self, step: int, losses: list[float], lr: float, n_images: int, train_seconds: float, seconds: float
    ) -> bool:
        """Take in the losses of the steps up to the run's step `step`; returns whether they made a point.

        n_images and train_seconds are counted from the beginning of the run.
        """
        n_points = len(self.points)
        speed = (n_images - self._n_images) / max(train_seconds - self._train_seconds, 1e-9)
        for at, loss in enumerate(losses, step - len(losses) + 1):
            self._sum, self._n = self._sum + loss, self._n + 1
            if at % self.every == 0 or at == self.n_steps:
                self.points.append(TrainingPoint(at, self._sum / self._n, lr, speed, seconds))
                self._sum, self._n = 0.0, 0
        self._n_images, self._train_seconds = n_images, train_seconds
        return len(self.points) > n_points

    def not_in(self, logged: set[int]) -> list[tuple[int, dict[str, float]]]:
        """What is to be logged of the points whose steps are not in `logged`."""
        return [point.metrics() for point in self.points if point.step not in logged]

    # --- in a checkpoint -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The points, and what has been collected for the next one."""
        return {"points": [point.to_json() for point in self.points], "collected": [self._sum, self._n]}

    def load_state_dict(self, state: dict[str, Any], n_images: int, train_seconds: float) -> None:
        """Continue with what `state_dict` returned when the run had come to n_images and train_seconds."""
        self.points = [TrainingPoint.from_json(point) for point in state["points"]]
        self._sum, self._n = state["collected"]
        self._n_images, self._train_seconds = n_images, train_seconds
