"""Figures of a report, as SVG text. In percent; bands and bars are one standard deviation over seeds."""

import io
import re
import textwrap
from collections import defaultdict

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from engram.scripts.analysis.run_set import Setting
from engram.utils.metrics import accuracy_matrix

WIDTH = 12.0  # inches: as wide as the page's text at 1280 pixels
MAX_CELLS = 10  # tasks up to which a heat map carries its numbers
DISTINCT = 10  # colours that can be told apart; then the line's style changes too
STYLES = ("-", "--", ":", "-.")
FONT = {"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "engram"}


def matrices(settings: list[Setting], view: str) -> str:
    """Mean R of every setting, side by side."""
    n_tasks = len(settings[0].stacked(view)[0])
    per_row = 4 if n_tasks <= MAX_CELLS else 3
    n_rows = -(-len(settings) // per_row)
    figure = _figure(WIDTH, 3.1 * n_rows * (4 / per_row) + 0.3)
    panels = figure.subplots(n_rows, per_row, squeeze=False).flatten()
    for axes, setting in zip(panels, settings, strict=False):
        mean = 100 * setting.stacked(view).mean(axis=0)
        axes.set_facecolor("0.93")
        image = axes.imshow(np.ma.masked_invalid(mean), vmin=0, vmax=100, cmap="viridis")
        if n_tasks <= MAX_CELLS:
            _numbers(axes, mean)
        axes.set_title(_wrapped(setting.label, 36 if per_row == 4 else 48), fontsize=9)
        _task_axis(axes, n_tasks, "xy")
        axes.set(xlabel="accuracy on task", ylabel="after task")
    used, unused = panels[: len(settings)], panels[len(settings) :]
    for axes in unused:
        axes.set_visible(False)
    figure.colorbar(image, ax=list(used), label="accuracy (%)", shrink=0.8, aspect=30, pad=0.01)
    return _svg(figure)


def over_tasks(settings: list[Setting], view: str) -> str:
    """Average accuracy and forgetting on the tasks seen, after each task."""
    figure = _figure(WIDTH, 4.2 + _legend_height(settings))
    left, right = figure.subplots(1, 2)
    for i, setting in enumerate(settings):
        seen = [[R[: k + 1, : k + 1] for k in range(len(R))] for R in setting.stacked(view)]
        for axes, metric in ((left, accuracy_matrix.average_accuracy), (right, accuracy_matrix.forgetting)):
            values = 100 * np.array([[metric(part) for part in parts] for parts in seen])
            _band(axes, np.arange(values.shape[1]), values, i, setting.label)
    n_tasks = len(settings[0].stacked(view)[0])
    for axes in (left, right):
        _task_axis(axes, n_tasks, "x")
        axes.set_xlabel("after task")
    left.set(ylabel="accuracy (%)", title="average accuracy on the tasks seen so far")
    right.set(ylabel="forgetting (percentage points)", title="forgetting of the earlier tasks")
    right.axhline(0, color="0.6", linewidth=0.8)
    _legend(figure, left)
    return _svg(figure)


def against_buffer(settings: list[Setting]) -> str | None:
    """Average accuracy of each view against the buffer size; None where only one size was run."""
    families = defaultdict(list)
    for setting in settings:
        if setting.config.get("buffer_size"):
            size = f", buffer {setting.config['buffer_size']}"
            families[(setting.label + ",").replace(f"{size},", ",").rstrip(",")].append(setting)
    families = {name: found for name, found in families.items() if len(found) > 1}
    if not families:
        return None
    views = settings[0].views
    figure = _figure(WIDTH, 4.2 + _legend_height(list(families)))
    panels = figure.subplots(1, len(views), squeeze=False)[0]
    sizes = sorted({s.config["buffer_size"] for found in families.values() for s in found})
    for axes, view in zip(panels, views, strict=True):
        for i, (name, found) in enumerate(families.items()):
            found.sort(key=lambda s: s.config["buffer_size"])
            values = [100 * np.array(s.values(view, "average_accuracy")) for s in found]
            aside = 1 + 0.02 * (i - (len(families) - 1) / 2)  # bars at one size must not hide each other
            axes.errorbar(
                [aside * s.config["buffer_size"] for s in found], [v.mean() for v in values],
                yerr=[v.std(ddof=1) if len(v) > 1 else 0.0 for v in values],
                capsize=4, marker="o", label=name, **_style(i),
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        title = "domain-IL" if len(views) == 1 else view.replace("_il", "-IL")
        axes.set(xlabel="buffer size (samples)", ylabel="average accuracy (%)", title=title)
        axes.grid(alpha=0.3)
    _legend(figure, panels[0])
    return _svg(figure)


def stability(settings: list[Setting], view: str) -> str | None:
    """Mean accuracy on the tasks seen, against the training step; None without --eval_every."""
    own = [s for s in settings if all(run.get("curve") for run in s.runs)]
    if not own:
        return None
    figure = _figure(WIDTH, 4.6 + _legend_height(own))
    axes = figure.add_subplot()
    boundaries = set()
    for i, setting in enumerate(own):
        points = [{p["step"]: 100 * np.mean(p[view]) for p in run["curve"]} for run in setting.runs]
        steps = sorted(set.intersection(*(set(p) for p in points)))
        _band(
            axes,
            np.array(steps),
            np.array([[p[step] for step in steps] for p in points]),
            i,
            setting.label,
            "",
        )
        curve = setting.runs[0]["curve"]
        ends = {p["task"]: p["step"] for p in curve}
        boundaries |= {step for task, step in ends.items() if task < max(ends)}
    for step in boundaries:
        axes.axvline(step, color="0.5", linestyle="--", linewidth=0.8, zorder=0)
    axes.set(xlabel="training step (dashed: a task ends)", ylabel="mean accuracy on the tasks seen (%)")
    _legend(figure, axes)
    return _svg(figure)


def cost(settings: list[Setting]) -> str:
    """Seconds and memory of a run, a bar a setting."""
    figure = _figure(WIDTH, 0.3 * len(settings) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(settings))
    begin = np.zeros(len(settings))
    for part, colour in (("train", "C0"), ("eval", "C1"), ("data", "C2"), ("start and logging", "0.8")):
        name = "total" if part == "start and logging" else part
        seconds = np.array([np.mean([run["seconds"].get(name) or 0 for run in s.runs]) for s in settings])
        if name == "total":
            seconds = np.maximum(seconds - begin, 0)
        left.barh(rows, seconds, left=begin, label=part, color=colour)
        begin = begin + seconds
    memory = [np.mean([(run.get("peak_memory_bytes") or 0) / 2**20 for run in s.runs]) for s in settings]
    right.barh(rows, memory, color="tab:gray")
    left.set_yticks(rows, [_wrapped(s.label, 42) for s in settings])
    left.invert_yaxis()
    left.set_xlabel("seconds of a run, mean over seeds")
    right.set_xlabel("peak memory of a run (MiB)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    return _svg(figure)


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, i: int, label: str, marker: str = "o") -> None:
    mean = values.mean(axis=0)
    axes.plot(x, mean, label=label, marker=marker, markersize=4, **_style(i))
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, alpha=0.15, color=_style(i)["color"], linewidth=0)
    axes.grid(alpha=0.3)


def _style(i: int) -> dict[str, str]:
    return {"color": f"C{i % DISTINCT}", "linestyle": STYLES[i // DISTINCT % len(STYLES)]}


def _numbers(axes: Axes, percent: np.ndarray) -> None:
    size = 8 if len(percent) <= 5 else 6
    for (i, j), value in np.ndenumerate(percent):
        if not np.isnan(value):
            colour = "white" if value < 60 else "black"  # viridis is dark below the middle
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=size)


def _task_axis(axes: Axes, n_tasks: int, which: str) -> None:
    for axis in (getattr(axes, f"{letter}axis") for letter in which):
        if n_tasks <= MAX_CELLS:
            axis.set_ticks(range(n_tasks))
        else:
            axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_major_formatter(ScalarFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    shown = [_wrapped(label, 50) for label in labels]
    figure.legend(handles, shown, loc="outside lower center", ncols=_columns(labels), frameon=False)


def _columns(labels: list[str]) -> int:
    return max(1, min(4, int(130 / (max(map(len, labels), default=1) + 8))))


def _legend_height(items: list) -> float:
    labels = [item if isinstance(item, str) else item.label for item in items]
    return 0.22 * -(-len(labels) // _columns(labels))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _figure(width: float, height: float) -> Figure:
    with rc_context(FONT):
        figure = Figure((width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    with rc_context(FONT):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", text, flags=re.DOTALL).strip()
