"""The results of a run as an object for notebooks: a run's record, its folder and its pictures."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engram.utils.runs import figures, text_summary
from engram.utils.runs.run_record import RunRecord


class RunResult:
    """What a run has measured. Accuracies are fractions, NaN where nothing was evaluated."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.record = RunRecord.read(self.path)

    @property
    def R(self) -> NDArray[np.float64]:  # noqa: N802
        """R[i, j]: accuracy on task j after training task i; class-IL, or domain-IL where that is run."""
        return self.matrix("class_il")

    def matrix(self, view: str) -> NDArray[np.float64]:
        """R of a view, `class_il` or `task_il`: (T, T)."""
        return self.record.views[view].R

    @property
    def status(self) -> str:
        """`finished`, `interrupted`, `stopped` or `failed`."""
        return self.record.status

    @property
    def config(self) -> dict[str, Any]:
        """Every flag of the run."""
        return self.record.config

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """View → metric → fraction, None where it was not measured."""
        named = {view: result.metrics for view, result in self.record.views.items()}
        named["forward"] = {"fwt": self.record.fwt}
        return {
            view: {name: None if math.isnan(value) else value for name, value in metrics.items()}
            for view, metrics in named.items()
        }

    def plot(self) -> Figure:
        """Average accuracy and forgetting after each task."""
        return figures.curves(self.record, None, self.record.title)

    def __repr__(self) -> str:
        return f"{self.record.title}, {self.status}: {text_summary.headline(self.record)}"

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows: one line and the curves."""
        file = io.BytesIO()
        self.plot().savefig(file, format="png")
        data = base64.b64encode(file.getvalue()).decode()
        return f'<p>{self!r}</p><img src="data:image/png;base64,{data}">'
