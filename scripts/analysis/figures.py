"""Figures of a report, in percent; bands and error bars are one standard deviation over seeds.

They are as wide as the text of a paper, with letters of 7 and 8 points, so that they need no scaling there.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter
from numpy.typing import NDArray

from engram.scripts.analysis.run_set import Setting
from engram.scripts.analysis.study_tables import stem
from engram.utils.metrics import accuracy_matrix, sampling
from engram.utils.metrics.statistics import mean_std_ci
from engram.utils.runs.run_record import VIEW_NAMES

WIDTH = 7.0  # inches: the text of a page of two columns
MAX_CELLS = 10  # tasks up to which a heat map shows its numbers
N_COLOURS = 10  # colours that can be told apart; the line's style changes after them
STYLES = ("-", "--", ":", "-.")
PRINT = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7.5, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 3,
}  # fmt: skip


def of_study(benchmarks: Mapping[str, list[Setting]]) -> dict[str, Figure]:
    """Every figure of a report, by the name of its file without an ending; made by `stem`."""
    drawn: dict[str, Figure | None] = {}
    for name, settings in benchmarks.items():
        for view in settings[0].views:
            drawn[stem(name, view, "over_tasks")] = over_tasks(settings, view)
            drawn[stem(name, view, "stability")] = stability(settings, view)
            drawn[stem(name, view, "matrices")] = matrices(settings, view)
        drawn[stem(name, "buffer_size")] = against_buffer(settings)
        drawn[stem(name, "cost")] = cost(settings)
    return {name: figure for name, figure in drawn.items() if figure is not None}


@rc_context(PRINT)
def matrices(settings: list[Setting], view: str) -> Figure:
    """Heat maps of R, the mean over the seeds of every setting, side by side."""
    per_row = 4 if _most_tasks(settings) <= MAX_CELLS else 3
    n_rows, n_columns = -(-len(settings) // per_row), min(per_row, len(settings))
    width = WIDTH if n_columns == per_row else 0.6 + WIDTH * n_columns / per_row  # and the colour bar
    figure = _figure(1.85 * n_rows * (4 / per_row) + 0.2, width)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, setting in zip(panels, settings, strict=False):
        scenario, mean = setting.first.scenario, setting.matrices(view).mean(axis=0)
        mean = 100 * accuracy_matrix.of_learned_tasks(mean, scenario)
        # cells, not an image, which viewers of PDF and SVG would blur
        n_tasks = len(mean)
        tasks = np.arange(n_tasks)
        cells = axes.pcolormesh(tasks, tasks, np.ma.masked_invalid(mean), vmin=0, vmax=100, cmap="viridis")
        axes.set(aspect="equal", ylim=(n_tasks - 0.5, -0.5))
        if n_tasks <= MAX_CELLS:
            _write_numbers(axes, mean)
        axes.set_title(textwrap.fill(setting.label, 26 if per_row == 4 else 36))
        _mark_tasks(axes, n_tasks, "xy")
        axes.set(xlabel="accuracy on task", ylabel="after task")
    used, unused = panels[: len(settings)], panels[len(settings) :]
    for axes in unused:
        axes.set_visible(False)
    figure.colorbar(cells, ax=list(used), label="accuracy (%)", shrink=0.8, aspect=30, pad=0.01)
    return figure


@rc_context(PRINT)
def over_tasks(settings: list[Setting], view: str) -> Figure:
    """Average accuracy and forgetting on the tasks seen so far, after each task."""
    figure = _figure(2.5 + _legend_height(setting.label for setting in settings))
    left, right = figure.subplots(1, 2)
    for i, setting in enumerate(settings):
        seen = [[R[: k + 1, : k + 1] for k in range(len(R))] for R in setting.matrices(view)]
        for axes, metric in ((left, accuracy_matrix.average_accuracy), (right, accuracy_matrix.forgetting)):
            values = 100 * np.array([[metric(R) for R in matrices] for matrices in seen])
            _draw_band(axes, np.arange(values.shape[1]), values, i, setting.label, marker="o")
    for axes in (left, right):
        _mark_tasks(axes, _most_tasks(settings), "x")
        axes.set_xlabel("after task")
    left.set(ylabel="accuracy (%)", title="average accuracy on the tasks seen so far")
    right.set(ylabel="forgetting (percentage points)", title="forgetting of the earlier tasks")
    right.axhline(0, color="0.6", linewidth=0.8)
    _draw_legend(figure, left)
    return figure


@rc_context(PRINT)
def against_buffer(settings: list[Setting]) -> Figure | None:
    """Average accuracy of each view against the buffer size; None where only one size was run."""
    families = _buffer_families(settings)
    if not families:
        return None
    views = settings[0].views
    figure = _figure(2.5 + _legend_height(families))
    panels = figure.subplots(1, len(views), squeeze=False)[0]
    sizes = sorted({setting.first.buffer_size for family in families.values() for setting in family})
    for axes, view in zip(panels, views, strict=True):
        for i, (label, family) in enumerate(families.items()):
            spreads = [mean_std_ci(100 * s.values(view, "average_accuracy")) for s in family]
            aside = 1 + 0.02 * (i - (len(families) - 1) / 2)  # bars at one size must not hide each other
            axes.errorbar(
                [aside * s.first.buffer_size for s in family], [s.mean for s in spreads],
                yerr=[np.nan_to_num(s.std) for s in spreads],
                capsize=2.5, marker="o", label=label, **_line_style(i),
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        title = "domain-IL" if len(views) == 1 else VIEW_NAMES[view]
        axes.set(xlabel="buffer size (samples)", ylabel="average accuracy (%)", title=title)
        axes.grid(alpha=0.3)
    _draw_legend(figure, panels[0])
    return figure


@rc_context(PRINT)
def stability(settings: list[Setting], view: str) -> Figure | None:
    """Mean accuracy on the tasks seen, against the training step; None without --eval_every."""
    settings = [setting for setting in settings if all(run.curve for run in setting.runs)]
    if not settings:
        return None
    figure = _figure(2.7 + _legend_height(setting.label for setting in settings))
    axes = figure.add_subplot()
    boundaries = set()
    for i, setting in enumerate(settings):
        curves = [
            {point.step: 100 * np.mean(point.accuracies[view]) for point in run.curve} for run in setting.runs
        ]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[step] for step in steps] for curve in curves])
        _draw_band(axes, np.array(steps), values, i, setting.label)
        last_steps = {point.task: point.step for point in setting.first.curve}
        boundaries |= {step for task, step in last_steps.items() if task < max(last_steps)}
    for step in boundaries:
        axes.axvline(step, color="0.5", linestyle="--", linewidth=0.8, zorder=0)
    axes.set(xlabel="training step (dashed: a task ends)", ylabel="mean accuracy on the tasks seen (%)")
    _draw_legend(figure, axes)
    return figure


@rc_context(PRINT)
def cost(settings: list[Setting]) -> Figure:
    """Seconds and peak memory of a run, one bar for each setting; none where no run was measured."""
    figure = _figure(0.22 * len(settings) + 0.9)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(settings))
    start = np.zeros(len(settings))
    for name, colour in (("train", "C0"), ("eval", "C1"), ("data", "C2")):
        seconds = _mean_seconds(settings, name)
        left.barh(rows, seconds, left=start, label=name, color=colour)
        start = start + seconds
    rest = np.maximum(_mean_seconds(settings, "total") - start, 0)
    left.barh(rows, rest, left=start, label="start and logging", color="0.8")
    memory = [_mean_measured(run.peak_memory_mib for run in s.runs) for s in settings]
    right.barh(rows, memory, color="tab:gray")
    left.set_yticks(rows, [textwrap.fill(setting.label, 36) for setting in settings])
    left.invert_yaxis()
    left.set_xlabel("seconds of a run, mean over seeds")
    right.set_xlabel("peak memory of a run (MiB)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    return figure


@rc_context(PRINT)
def retained_accuracy(panels: Mapping[str, Mapping[str, Setting]]) -> Figure:
    """Mean accuracy on the tasks seen, after each task: a panel for each title, a line for each label."""
    figure = _figure(2.6, WIDTH * max(1, len(panels)) / 2)
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, settings) in zip(subplots, panels.items(), strict=True):
        for label, setting in settings.items():
            R = setting.matrices("class_il").mean(axis=0)
            axes.plot([100 * sampling.mean_of_seen(R[i, : i + 1]).mean for i in range(len(R))], label=label)
        axes.set(title=title, xlabel="after task", ylabel="mean accuracy on tasks seen (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6.5)
    return figure


@rc_context(PRINT)
def points(lines: Mapping[str, tuple[str, NDArray[np.float64]]]) -> Figure:
    """Mean of the differences in points, with its 95 % interval, of each line: its colour's name, (n,)."""
    figure = _figure(0.5 + 0.15 * len(lines))
    axes, colours = figure.add_subplot(), list(dict.fromkeys(name for name, _ in lines.values()))
    for i, (name, values) in enumerate(lines.values()):
        spread, colour = mean_std_ci(values), f"C{colours.index(name) % N_COLOURS}"
        axes.errorbar(spread.mean, i, xerr=np.nan_to_num(spread.ci95), fmt="o", color=colour, capsize=2)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set(ylim=(len(lines) - 0.4, -0.6), xlabel="points of class-IL accuracy, 95 % interval over seeds")
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _buffer_families(settings: list[Setting]) -> dict[str, list[Setting]]:
    """Settings that differ in the buffer size alone, by their label without it, smallest size first."""
    families = defaultdict(list)
    for setting in settings:
        if size := setting.first.buffer_size:
            words = [word for word in setting.label.split(", ") if word != f"buffer {size}"]
            families[", ".join(words)].append(setting)
    return {
        label: sorted(family, key=lambda setting: setting.first.buffer_size)
        for label, family in families.items()
        if len(family) > 1
    }


def _most_tasks(settings: list[Setting]) -> int:
    return max(setting.first.n_tasks for setting in settings)


def _mean_seconds(settings: list[Setting], name: str) -> NDArray[np.float64]:
    return np.array([_mean_measured(getattr(run.seconds, name) for run in s.runs) for s in settings])


def _mean_measured(values: Iterable[float | None]) -> float:
    """The mean of the values that were measured; 0, a bar of no length, where none was."""
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else 0.0


def _draw_band(
    axes: Axes, x: NDArray[np.int_], values: NDArray[np.float64], i: int, label: str, marker: str = ""
) -> None:
    """The mean of values (n_seeds, n_points) as the i-th line, with a band of one standard deviation."""
    spreads = [mean_std_ci(column) for column in values.T]
    mean, std = np.array([s.mean for s in spreads]), np.array([s.std for s in spreads])
    axes.plot(x, mean, label=label, marker=marker, **_line_style(i))
    if len(values) > 1:
        colour = _line_style(i)["color"]
        axes.fill_between(x, mean - std, mean + std, alpha=0.15, color=colour, linewidth=0)
    axes.grid(alpha=0.3)


def _line_style(i: int) -> dict[str, str]:
    return {"color": f"C{i % N_COLOURS}", "linestyle": STYLES[i // N_COLOURS % len(STYLES)]}


def _write_numbers(axes: Axes, percent: NDArray[np.float64]) -> None:
    """The number of each cell of a heat map."""
    size = 7 if len(percent) <= 5 else 5
    for (i, j), value in np.ndenumerate(percent):
        if not np.isnan(value):
            colour = "white" if value < 60 else "black"  # viridis is dark below the middle
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=size)


def _mark_tasks(axes: Axes, n_tasks: int, letters: str) -> None:
    """Whole numbers of tasks as the ticks of the x axis, the y axis or both."""
    for axis in (getattr(axes, f"{letter}axis") for letter in letters):
        if n_tasks <= MAX_CELLS:
            axis.set_ticks(range(n_tasks))
        else:
            axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_major_formatter(ScalarFormatter())


def _draw_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    shown = [textwrap.fill(label, 42) for label in labels]
    figure.legend(handles, shown, loc="outside lower center", ncols=_legend_columns(labels), frameon=False)


def _legend_columns(labels: Sequence[str]) -> int:
    return max(1, min(4, int(105 / (max(map(len, labels), default=1) + 8))))


def _legend_height(labels: Iterable[str]) -> float:
    """The height in inches that a legend of these labels takes."""
    labels = list(labels)
    return 0.17 * -(-len(labels) // _legend_columns(labels))


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure((width, height), layout="constrained")
