"""Report: a results document as plain text for a terminal and for the run's log. Accuracies in percent."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from engram.utils.tracking.mlflow_store import how_to_browse

MAX_TASKS = 20  # wider matrices are shown by their diagonal and last row
PER_LINE = 10
ROWS = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "bwt": "backward transfer (BWT)",
    "learning_accuracy": "learning accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "min_acc": "min-ACC, inside tasks",
    "wc_acc": "worst-case accuracy, inside tasks",
}
ALWAYS = 5  # of the rows; the others only where they were measured
VIEWS = {"class_il": "class-IL", "task_il": "task-IL"}


def full(document: dict[str, Any], logged: bool) -> str:
    """Everything a finished run prints; `logged`: its numbers are in MLflow."""
    data = "validation data" if document.get("evaluated_on") == "validation" else "test data"
    tables = [
        matrix_table(document[view]["R"], f"{name} accuracy in % ({data})")
        for view, name in view_names(document).items()
    ]
    lines = [*tables, summary(document), *memorization(document), cost(document)]
    if logged:
        lines[-1] += f"\nbrowse   {how_to_browse(document['config'].get('tracking_uri'))}"
    return "\n" + "\n\n".join(lines) + "\n"


def view_names(document: dict[str, Any]) -> dict[str, str]:
    """View → its name; one in domain-IL, where both hold the same numbers."""
    return {"class_il": "domain-IL"} if document.get("scenario") == "domain-il" else VIEWS


def matrix_table(R: ArrayLike, title: str) -> str:
    """R (T, T), one row per task learned, one column per task evaluated."""
    R = np.array(R, dtype=np.float64)
    if len(R) > MAX_TASKS:
        return _long_table(R, title)
    width = 7 if len(R) <= PER_LINE else 6
    head = "after \\ on" + "".join(f"{j:{width}d}" for j in range(len(R)))
    rows = [f"{i:10d}" + "".join(f"{percent(value):>{width}}" for value in row) for i, row in enumerate(R)]
    return "\n".join([title, head, *rows])


def _long_table(R: np.ndarray, title: str) -> str:
    rows = {"task": range(len(R)), "learned": np.diag(R), "at the end": R[-1]}
    lines = [f"{title}: when the task had just been learned, and at the end"]
    for start in range(0, len(R), PER_LINE):
        for name, values in rows.items():
            part = values[start : start + PER_LINE]
            cells = map(str, part) if name == "task" else map(percent, part)
            lines.append(f"{name:>10}" + "".join(f"{cell:>7}" for cell in cells))
    means = [percent(values.mean()) for values in (np.diag(R), R[-1])]
    return "\n".join([*lines, f"{'mean':>10}   learned {means[0]}, at the end {means[1]}"])


def summary(document: dict[str, Any]) -> str:
    """The metrics, one column per view."""
    names = view_names(document)
    lines = [f"{'in %':<36}" + "".join(f"{name:>12}" for name in names.values())]
    for n, (key, label) in enumerate(ROWS.items()):
        values = [document[view].get(key) for view in names]
        if n < ALWAYS or any(value is not None for value in values):
            lines.append(_row(label, values))
    if document.get("fwt") is not None:  # of the view in which unseen tasks can be predicted
        lines.append(_row("forward transfer (FWT)", [*[None] * (len(names) - 1), document["fwt"]]))
    return "\n".join(lines)


def memorization(document: dict[str, Any]) -> list[str]:
    """Accuracy and forgetting of training samples by memorization, where scores were given."""
    groups = document.get("groups") or {}
    if not groups:
        return []
    low, high = document["config"]["mem_thresholds"]
    ranges = {"high": f"above {high}", "mid": f"{low} to {high}", "low": f"up to {low}"}
    head = f"{'training samples by memorization':<36}{'class-IL':>12}{'forgetting':>12}   (in %, at the end)"
    lines = [head]
    for name, views in groups.items():
        last = [value for value in views["class_il"]["R"][-1] if value is not None]
        mean = float(np.mean(last)) if last else None
        cells = [percent(v, missing="–") for v in (mean, views["class_il"]["forgetting"])]
        lines.append(f"{name + ' (' + ranges[name] + ')':<36}" + "".join(f"{cell:>12}" for cell in cells))
    return ["\n".join(lines)]


def _row(label: str, values: list[float | None]) -> str:
    return f"{label:<36}" + "".join(f"{percent(value, missing='–'):>12}" for value in values)


def cost(document: dict[str, Any]) -> str:
    """Seconds, speed and device."""
    seconds, speed = document.get("seconds") or {}, document.get("images_per_second")
    parts = [
        f"{seconds[k]:.1f} s {k}" for k in ("train", "eval", "data", "total") if seconds.get(k) is not None
    ]
    line = f"time     {', '.join(parts) or '–'}"
    if speed is not None:
        line += f"; {speed:,.0f} images/s in training"
    return line + (f"\ndevice   {document['device']}" if document.get("device") else "")


def headline(document: dict[str, Any]) -> str:
    """One line: the numbers a run is known by."""
    parts = []
    for view, name in view_names(document).items():
        text = f"{name} accuracy {percent(document[view].get('average_accuracy'), '–')} %"
        forgetting = document[view].get("forgetting")
        parts.append(text if forgetting is None else f"{text}, forgetting {percent(forgetting)} %")
    return "; ".join(parts)


def percent(fraction: float | None, missing: str = "·") -> str:
    """One decimal; `missing` where there is no number."""
    if fraction is None or np.isnan(fraction):
        return missing
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text
