"""Figures of finished runs: accuracy by buffer size, differences to a balanced memory, forgetting."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engram.memorization.runs import finished_runs, setting_names
from engram.utils.figure_files import canvas
from engram.utils.metrics.statistics import mean_std_ci, standard_deviation
from engram.utils.runs.run_record import RunRecord

COLOURS = {"test": "black", "high": "tab:red", "mid": "tab:orange", "low": "tab:blue"}
BASELINE = "er balanced"  # the memory that others are compared with
POLICY_COLOURS = {
    "min": "tab:blue", "middle": "tab:green", "max": "tab:red", "randomized": "tab:orange", "er": "0.4",
}  # fmt: skip
MAX_PANELS = 6  # of a figure of groups
Settings = dict[tuple[str, int], list[RunRecord]]  # by name and buffer size


def draw_all(folder: Path) -> dict[str, Figure]:
    """The figures that the runs allow, for each benchmark, by name."""
    by_dataset = defaultdict(list)
    for record in finished_runs(folder, "--runs"):
        by_dataset[record.config["dataset"]].append(record)
    drawn = {}
    for dataset, records in by_dataset.items():
        sizes = {r.config["buffer_size"] for r in records if "buffer_size" in r.config}
        if len(sizes) > 1:
            drawn[f"buffer_size_{dataset}"] = buffer_size(records, dataset)
            if compared := differences(records):
                drawn[f"difference_{dataset}"] = difference_figure(compared, dataset)
        # a joint run has no age: its tasks are learned together
        if grouped := [r for r in records if r.groups and r.config["model"] != "joint"]:
            drawn |= group_figures(grouped, dataset)
    return drawn


def buffer_size(records: list[RunRecord], dataset: str) -> Figure:
    """Class-IL accuracy, mean and standard deviation over seeds; joint training as a dashed line."""
    table: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, setting in zip(records, setting_names([r.config for r in records]), strict=True):
        accuracy = 100 * record.class_il.metric("average_accuracy")
        table[setting][record.config.get("buffer_size", 0)].append(accuracy)
    figure = canvas(7.6, 4.8)
    axes = figure.add_subplot()
    all_sizes = sorted({size for by_size in table.values() for size in by_size if size})
    settings = sorted(setting for setting, by_size in table.items() if set(by_size) - {0})
    for i, setting in enumerate(settings):
        sizes = sorted(set(table[setting]) - {0})
        values = [np.array(table[setting][size]) for size in sizes]
        x = np.array([all_sizes.index(size) for size in sizes]) + 0.04 * (i - (len(settings) - 1) / 2)
        error = [np.nan_to_num(standard_deviation(v)) for v in values]  # no bar for one seed
        means = [v.mean() for v in values]
        axes.errorbar(x, means, error, marker="o", markersize=4, capsize=3, linewidth=1.3, label=setting)
    if "joint" in table:
        level = float(np.mean([value for values in table["joint"].values() for value in values]))
        axes.axhline(level, color="0.4", linestyle="--", label="joint")
    axes.set_xticks(range(len(all_sizes)), [str(size) for size in all_sizes])
    n_seeds = len({record.seed for record in records})
    axes.set(xlabel="buffer size", ylabel="class-IL accuracy (%)")
    axes.set_title(f"{dataset}, {n_seeds} seeds (bars: standard deviation)", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    return figure


def differences(records: list[RunRecord]) -> dict[str, dict[int, list[float]]]:
    """Setting → buffer size → class-IL accuracy minus the balanced memory's, in points, paired by seed.

    A seed is paired where both runs had their classes in the same order.
    """
    table: dict[tuple[str, int], dict[tuple[int, ...], float]] = defaultdict(dict)
    for record, setting in zip(records, setting_names([r.config for r in records]), strict=True):
        stream = (record.seed, *(record.class_order or ()))
        if size := record.config.get("buffer_size"):
            table[setting, size][stream] = 100 * record.class_il.metric("average_accuracy")
    compared: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for (setting, size), by_stream in sorted(table.items()):
        baseline = table.get((BASELINE, size), {})
        if shared := sorted(by_stream.keys() & baseline.keys()) if setting != BASELINE else []:
            compared[setting][size] = [by_stream[stream] - baseline[stream] for stream in shared]
    return dict(compared)


def difference_figure(compared: dict[str, dict[int, list[float]]], dataset: str) -> Figure:
    """Differences against buffer size with Student's 95 % intervals: a panel for each proxy."""
    panels: dict[str, list[str]] = defaultdict(list)
    for setting in compared:
        words = setting.split()
        panels[words[2] if len(words) > 2 else ""].append(setting)
    shared = panels.pop("", []) if len(panels) > 1 else []  # settings without a proxy stand in every panel
    all_sizes = sorted({size for by_size in compared.values() for size in by_size})
    figure = canvas(4.6 * len(panels) + 0.6, 4.6)
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (proxy, settings) in zip(row, sorted(panels.items()), strict=True):
        drawn = sorted([*settings, *shared])
        for i, setting in enumerate(drawn):
            sizes = sorted(compared[setting])
            spreads = [mean_std_ci(compared[setting][size]) for size in sizes]
            x = np.array([all_sizes.index(size) for size in sizes]) + 0.07 * (i - (len(drawn) - 1) / 2)
            words = setting.split()
            axes.errorbar(
                x, [s.mean for s in spreads], np.nan_to_num([s.ci95 for s in spreads]), marker="o",
                markersize=4, capsize=3, linewidth=1.3, linestyle="--" if words[0] == "maer_high" else "-",
                color=POLICY_COLOURS.get(words[1 if len(words) > 1 else 0]), label=" ".join(words[:2]),
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(all_sizes)), [str(size) for size in all_sizes])
        axes.set(xlabel="buffer size", title=f"chosen by {proxy}" if proxy else "")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
    row[0].set_ylabel(f"class-IL accuracy minus {BASELINE} (points)")
    n = {len(values) for by_size in compared.values() for values in by_size.values()}
    pairs = str(min(n)) if len(n) == 1 else f"{min(n)} to {max(n)}"
    figure.suptitle(f"{dataset}, pairs by seed: {pairs} (bars: 95 % intervals)", fontsize=11)
    return figure


def group_figures(records: list[RunRecord], dataset: str) -> dict[str, Figure]:
    """`groups` of all settings by name: one figure, or of many settings one or more for each buffer size."""
    by_setting: Settings = defaultdict(list)
    for record, name in zip(records, setting_names([r.config for r in records]), strict=True):
        by_setting[name, record.config.get("buffer_size", 0)].append(record)
    if len(by_setting) <= MAX_PANELS:
        return {f"groups_{dataset}": groups(by_setting, dataset)}
    drawn = {}
    for size in sorted({size for _, size in by_setting}):
        keys = sorted(key for key in by_setting if key[1] == size)
        pages = [keys[start : start + MAX_PANELS] for start in range(0, len(keys), MAX_PANELS)]
        for number, page in enumerate(pages, 1):
            name = f"groups_{dataset}_buffer_{size}" + f"_{number}" * (len(pages) > 1)
            drawn[name] = groups({key: by_setting[key] for key in page}, dataset)
    return drawn


def groups(by_setting: Settings, dataset: str) -> Figure:
    """Accuracy by tasks since learned: test samples, and training samples by memorization."""
    keys = sorted(by_setting)
    n_columns = min(3, len(keys))
    n_rows = -(-len(keys) // n_columns)
    figure = canvas(4.4 * n_columns + 0.4, 3.5 * n_rows + 0.7)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    low, high = by_setting[keys[0]][0].config["mem_thresholds"]
    labels = {
        "test": "test samples", "high": f"training, score > {high}", "mid": f"training, {low} to {high}",
        "low": f"training, up to {low}",
    }  # fmt: skip
    for axes, key in zip(panels.flat, keys, strict=False):
        title = key[0] + (f", buffer {key[1]}" if key[1] else "")
        group_panel(axes, by_setting[key], labels, title)
    for row in panels:
        row[0].set_ylabel("class-IL accuracy (%)")
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    legend = panels[0][0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{dataset}: what is forgotten (shaded: standard deviation over seeds)", fontsize=11)
    return figure


def group_panel(axes: Axes, records: list[RunRecord], labels: dict[str, str], title: str) -> None:
    """The curves of one setting, a line for each group of samples."""
    for group, colour in COLOURS.items():
        curves = np.array([by_age(record, group) for record in records])
        mean = curves.mean(0)
        error = np.nan_to_num(standard_deviation(curves))  # no band for one seed
        axes.plot(mean, color=colour, marker="o", markersize=3.5, label=labels[group])
        ages = range(len(mean))
        axes.fill_between(ages, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        axes.set_xticks(ages)
    axes.set_title(f"{title} ({len(records)} seeds)", fontsize=10)
    axes.set(xlabel="tasks since learned", ylim=(-2, 102))
    axes.grid(alpha=0.3)


def by_age(record: RunRecord, group: str) -> list[float]:
    """Accuracy in % on tasks learned 0, 1, 2, ... tasks ago, the mean over tasks."""
    views = record.views if group == "test" else record.groups[group]
    R: NDArray[np.float64] = 100 * views["class_il"].R
    diagonals = [np.diag(R, -age) for age in range(len(R))]
    return [float(d[~np.isnan(d)].mean()) if (~np.isnan(d)).any() else float("nan") for d in diagonals]
