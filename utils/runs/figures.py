"""Figures of a run: accuracy matrix as a heat map, curves over tasks and training steps, as PNG.

Numbers are shown in percent. Nothing here uses pyplot: no display, no global state.
"""

import itertools
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from engram.utils.figure_files import WIDTH, canvas, save
from engram.utils.metrics import accuracy_matrix, sampling
from engram.utils.metrics.measurements import CurvePoint, MemoryCounts
from engram.utils.runs.matrix_csv import matrix_stem
from engram.utils.runs.run_record import VIEW_NAMES, RunRecord

MAX_ANNOTATED = 20  # tasks
MAX_NAMED = 10  # tasks that get a legend entry each
COLOURS = {"class_il": "tab:blue", "task_il": "tab:orange"}
MARKERS = {"class_il": "o", "task_il": "s"}
MISSING: dict[str, Any] = {"facecolor": "0.94", "edgecolor": "0.75", "hatch": "///", "linewidth": 0}


def write_all(record: RunRecord, folder: Path) -> list[Path]:
    """Draw every figure of a run in `folder`; returns the files."""
    names, written = record.view_names, []
    for view, name in names.items():
        written.append(folder / f"{matrix_stem(record, view)}.png")
        R = accuracy_matrix.of_learned_tasks(record.views[view].R, record.scenario)
        heat_map(R, f"{name} accuracy\n{record.title}", written[-1])
    written.append(folder / "curves.png")
    curves(record, written[-1], record.title)
    if record.curve:
        written.append(folder / "stability.png")
        stability(record.curve, written[-1], names, record.title)
    if record.memory:
        written.append(folder / "memory.png")
        memory(record.memory, written[-1], record.title)
    return written


def heat_map(R: ArrayLike, title: str, path: Path) -> Figure:
    """Heat map of R (T, T); cells without a number are hatched, those above the diagonal stay white."""
    percent = 100 * np.asarray(R, dtype=np.float64)
    T = len(percent)
    side = float(np.clip(0.46 * T, 2.8, 9.4))
    figure = canvas(side + 2.0, side + 1.4)
    axes = figure.add_subplot()
    axes.patch.set(**MISSING)  # shows through where the image is transparent
    image = axes.imshow(np.ma.masked_invalid(percent), vmin=0, vmax=100, cmap="viridis")
    later = np.isnan(percent) & ~np.tri(T, dtype=bool)
    axes.imshow(np.ma.masked_equal(later, 0), vmin=0, vmax=1, cmap="gray")
    figure.colorbar(image, ax=axes, label="accuracy (%)", shrink=0.8)
    if T <= MAX_ANNOTATED:
        _annotate(axes, percent)
    _task_ticks(axes, T, "xy")
    axes.set(xlabel="accuracy on task", ylabel="after task")
    axes.set_title(_wrapped(title, side + 1.0), fontsize=11)
    if (np.isnan(percent) & ~later).any():
        handle = Patch(label="not evaluated", **MISSING)
        figure.legend(handles=[handle], loc="outside lower right", frameon=False, fontsize=9)
    return save(figure, path)


def _annotate(axes: Axes, percent: np.ndarray) -> None:
    digits, size = (1, 9) if len(percent) <= 10 else (0, 9)
    for (i, j), value in np.ndenumerate(percent):
        if not np.isnan(value):
            # viridis is dark below the middle
            colour = "white" if value < 60 else "black"
            axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=size)


def curves(record: RunRecord, path: Path | None, title: str = "") -> Figure:
    """Average accuracy and forgetting over the tasks seen so far, after each task, for each view."""
    figure = canvas(WIDTH, 4.8)
    left, right = figure.subplots(1, 2)
    names = record.view_names
    for view, name in names.items():
        R = record.views[view].R
        seen = [R[: i + 1, : i + 1] for i in range(len(R))]
        style = {"label": name, "color": COLOURS[view], "marker": MARKERS[view], "markersize": 5}
        # of a run with --eval_tasks both are estimates, and only there is an earlier task missing
        left.plot([100 * sampling.mean_of_seen(rows[-1]).mean for rows in seen], **style)
        right.plot([100 * accuracy_matrix.mean_known_forgetting(rows) for rows in seen], **style)
    for axes in (left, right):
        _task_ticks(axes, record.n_tasks, "x")
        axes.set_xlim(-0.3, record.n_tasks - 0.7)
        axes.set_xlabel("after task")
        axes.grid(alpha=0.3)
    left.set(ylim=(-2, 102), ylabel="accuracy (%)", title="average accuracy on the tasks seen so far")
    right.set(ylabel="forgetting (percentage points)", title="forgetting of the earlier tasks")
    right.axhline(0, color="0.5", linewidth=0.8)
    if not any(np.isfinite(line.get_ydata()).any() for line in right.lines[: len(names)]):
        right.set_yticks([0])
        right.text(0.5, 0.6, "no earlier accuracies to compare with", ha="center", transform=right.transAxes)
    if len(names) > 1:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def stability(
    curve: list[CurvePoint], path: Path, names: dict[str, str] = VIEW_NAMES, title: str = ""
) -> Figure:
    """Accuracy of every seen task against the training step; dashed lines where a task ended."""
    figure = canvas(WIDTH, 3.6 * len(names) + 0.8)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    tasks = range(max(point.task for point in curve) + 1)
    many = len(tasks) > MAX_NAMED
    scale = ScalarMappable(Normalize(0, max(len(tasks) - 1, 1)), "viridis")
    colours = [colormaps["viridis"](j / (len(tasks) - 1)) if many else colormaps["tab10"](j) for j in tasks]
    for axes, (view, name) in zip(panels, names.items(), strict=True):
        _draw_tasks(axes, curve, view, colours)
        axes.set(ylim=(-2, 102), ylabel="accuracy (%)", title=f"{name} accuracy of each task while training")
    panels[-1].set_xlabel("training step")
    if many:
        ticks = MaxNLocator(integer=True)
        figure.colorbar(scale, ax=list(panels), label="task", ticks=ticks, aspect=40)
    else:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def memory(rows: list[MemoryCounts], path: Path, title: str = "") -> Figure:
    """What the memory held after each task, by class and by the task that a sample came from (its age)."""
    figure = canvas(WIDTH, float(np.clip(0.3 * len(rows), 2.4, 8.0)) + 1.4)
    panels = zip(figure.subplots(1, 2), ("per_class", "per_task"), ("class", "task"), strict=True)
    for axes, key, name in panels:
        counts = np.array([getattr(row, key) for row in rows])
        image = axes.imshow(np.ma.masked_equal(counts, 0), vmin=0, cmap="viridis", aspect="auto")
        axes.patch.set(facecolor="0.94")  # shows through where there are none
        figure.colorbar(image, ax=axes, label="samples")
        if counts.shape[1] <= MAX_NAMED and len(rows) <= MAX_ANNOTATED:
            _annotate_counts(axes, counts)
        _task_ticks(axes, counts.shape[1], "x")
        _task_ticks(axes, len(rows), "y")
        axes.set(xlabel=name, ylabel="after task", title=f"samples in the memory, by {name}")
    figure.suptitle(title, fontsize=11)
    return save(figure, path)


def _annotate_counts(axes: Axes, counts: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(counts):
        if value:
            colour = "white" if value < 0.6 * counts.max() else "black"
            axes.text(j, i, f"{value}", ha="center", va="center", color=colour, fontsize=8)


def _draw_tasks(axes: Axes, curve: list[CurvePoint], view: str, colours: list[Any]) -> None:
    style: dict[str, Any] = {"linewidth": 1.2, "marker": ".", "markersize": 3}
    for j, colour in enumerate(colours):
        points = [(p.step, 100 * p.accuracies[view][j]) for p in curve if len(p.accuracies[view]) > j]
        axes.plot(*zip(*points, strict=True), color=colour, label=f"task {j}", **style)
    for step in _boundaries(curve):
        width = 0.4 if len(colours) > MAX_NAMED else 0.8
        axes.axvline(step, color="0.5", linestyle="--", linewidth=width, zorder=0)
    axes.grid(alpha=0.3)


def _boundaries(curve: list[CurvePoint]) -> list[int]:
    """The step of the last evaluation in each task but the last."""
    pairs = itertools.pairwise(curve)
    return [point.step for point, following in pairs if following.task != point.task]


def _task_ticks(axes: Axes, n_tasks: int, which: str) -> None:
    for axis in (getattr(axes, f"{letter}axis") for letter in which):
        if n_tasks <= MAX_ANNOTATED:
            axis.set_ticks(range(n_tasks))
        else:
            axis.set_major_locator(MaxNLocator(integer=True))


def _wrapped(text: str, inches: float) -> str:
    lines = [row for line in text.splitlines() for row in textwrap.wrap(line, int(inches * 11))]
    return "\n".join(lines)
