"""The record of a run as plain text for a terminal and for the run's log. Accuracies are in percent."""

import math

import numpy as np
from numpy.typing import ArrayLike

from engram.utils.runs.run_record import RunRecord

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


def full(record: RunRecord) -> str:
    """The numbers that a finished run prints."""
    tables = [
        matrix_table(record.views[view].R, f"{name} accuracy in % ({record.evaluated_on} data)")
        for view, name in record.view_names.items()
    ]
    lines = [*tables, summary(record), *explanation(record), *memorization(record), cost(record)]
    return "\n" + "\n\n".join(lines) + "\n"


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
            shown = values[start : start + PER_LINE]
            cells = map(str, shown) if name == "task" else map(percent, shown)
            lines.append(f"{name:>10}" + "".join(f"{cell:>7}" for cell in cells))
    means = [percent(values.mean()) for values in (np.diag(R), R[-1])]
    return "\n".join([*lines, f"{'mean':>10}   learned {means[0]}, at the end {means[1]}"])


def summary(record: RunRecord) -> str:
    """The metrics, one column per view."""
    names = record.view_names
    lines = [f"{'in %':<36}" + "".join(f"{name:>12}" for name in names.values())]
    for n, (key, label) in enumerate(ROWS.items()):
        values = [record.views[view].metric(key) for view in names]
        if n < ALWAYS or not all(map(math.isnan, values)):
            lines.append(_row(label, values))
    if not math.isnan(record.fwt):  # of the view in which unseen tasks can be predicted
        lines.append(_row("forward transfer (FWT)", [*[math.nan] * (len(names) - 1), record.fwt]))
    return "\n".join(lines)


def explanation(record: RunRecord) -> list[str]:
    """What may puzzle whoever sees the numbers for the first time: the zeros and the dash of class-IL."""
    if record.scenario != "class-il" or record.n_tasks < 2:
        return []
    text = "above the diagonal are tasks that are not learned yet: class-IL never names their classes"
    return [text + (",\nso forward transfer has no number there" if not math.isnan(record.fwt) else "")]


def memorization(record: RunRecord) -> list[str]:
    """Accuracy and forgetting of training samples by memorization, where scores were given."""
    if not record.groups:
        return []
    low, high = record.config["mem_thresholds"]
    ranges = {"high": f"above {high}", "mid": f"{low} to {high}", "low": f"up to {low}"}
    columns = f"{'samples':>12}{'class-IL':>12}{'forgetting':>12}"
    head = f"{'training samples by memorization':<36}{columns}   (accuracy in %, at the end)"
    lines = [head]
    for name, views in record.groups.items():
        last_row = views["class_il"].R[-1]
        measured = last_row[~np.isnan(last_row)]
        mean = float(measured.mean()) if len(measured) else math.nan
        n_samples = views["class_il"].metric("n_samples")
        label = f"{f'{name} ({ranges[name]})':<36}{'–' if math.isnan(n_samples) else f'{n_samples:,.0f}':>12}"
        lines.append(_row(label, [mean, views["class_il"].metric("forgetting")]))
    return ["\n".join(lines)]


def _row(label: str, values: list[float]) -> str:
    return f"{label:<36}" + "".join(f"{percent(value, missing='–'):>12}" for value in values)


def cost(record: RunRecord) -> str:
    """Where the time went, the speed of training, and the device."""
    seconds = record.seconds
    named = {"train": seconds.train, "eval": seconds.eval, "data": seconds.data, "total": seconds.total}
    times = [f"{value:.1f} s {name}" for name, value in named.items() if value is not None]
    line = f"time     {', '.join(times) or '–'}"
    if record.images_per_second:  # None or 0: nothing was trained by steps, e.g. class means alone
        line += f"; {record.images_per_second:,.0f} images/s in training"
    arithmetic = f", {record.precision}" if record.precision else ""
    return line + (f"\ndevice   {record.device}{arithmetic}" if record.device else "")


def headline(record: RunRecord) -> str:
    """One line: the numbers a run is known by."""
    texts = []
    for view, name in record.view_names.items():
        result = record.views[view]
        text = f"{name} accuracy {percent(result.metric('average_accuracy'), '–')} %"
        forgetting = result.metric("forgetting")
        texts.append(text if math.isnan(forgetting) else f"{text}, forgetting {percent(forgetting)} %")
    marked = [] if record.evaluated_on == "test" else [f"on {record.evaluated_on} data"]
    return "; ".join([*texts, *marked])


def percent(fraction: float, missing: str = "·") -> str:
    """One decimal; `missing` where there is no number."""
    if math.isnan(fraction):
        return missing
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text
