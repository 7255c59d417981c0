"""Outcome: the results of a run as an object for notebooks, read from its results.json."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from engram.utils.errors import UserError
from engram.utils.runs import figures, text_summary


class RunResult:
    """What a run has measured. Accuracies are fractions, NaN where nothing was evaluated."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            text = (self.path / "results.json").read_text(encoding="utf-8")
        except OSError:
            raise UserError(f"{path}: holds no results.json; give the folder of a run") from None
        self.document: dict[str, Any] = json.loads(text)

    @property
    def R(self) -> np.ndarray:  # noqa: N802
        """R[i, j]: accuracy on task j after training task i; class-IL, or domain-IL where that is run."""
        return self.matrix("class_il")

    def matrix(self, view: str) -> np.ndarray:
        """R of a view, `class_il` or `task_il`: (T, T)."""
        return np.array(self.document[view]["R"], dtype=np.float64)

    @property
    def status(self) -> str:
        """`finished`, `interrupted` or `failed`."""
        return self.document["status"]

    @property
    def config(self) -> dict[str, Any]:
        """Every flag of the run."""
        return self.document["config"]

    @property
    def metrics(self) -> dict[str, dict[str, float | None]]:
        """View → metric → fraction, None where it was not measured."""
        views = {v: {k: x for k, x in self.document[v].items() if k != "R"} for v in text_summary.VIEWS}
        return views | {"forward": {"fwt": self.document["fwt"]}}

    def plot(self) -> Figure:
        """Average accuracy and forgetting after each task."""
        config = self.config
        title = f"{config['model']} on {config['dataset']}, seed {config['seed']}"
        return figures.curves(self.document, None, title)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"{config['model']} on {config['dataset']}, seed {config['seed']}, {self.status}: "
            f"{text_summary.headline(self.document)}"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        file = io.BytesIO()
        self.plot().savefig(file, format="png")
        data = base64.b64encode(file.getvalue()).decode()
        return f'<p>{self!r}</p><img src="data:image/png;base64,{data}">'
