"""Figures of finished runs: accuracy against buffer size, accuracy by memorization over tasks."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from engram.memorization.runs import finished, names
from engram.utils.figure_files import canvas, save

LINES = {"test": "black", "high": "tab:red", "mid": "tab:orange", "low": "tab:blue"}
MAX_PANELS = 6


def write_all(folder: Path, out: Path) -> list[Path]:
    """The figures that the runs allow, for each benchmark."""
    by_dataset = defaultdict(list)
    for document in finished(folder, "--runs"):
        by_dataset[document["config"]["dataset"]].append(document)
    written = []
    for dataset, documents in by_dataset.items():
        sizes = {d["config"]["buffer_size"] for d in documents if "buffer_size" in d["config"]}
        if len(sizes) > 1:
            written.append(out / f"buffer_size_{dataset}.png")
            buffer_size(documents, dataset, written[-1])
        # a joint run has no age: its tasks are learned together
        if grouped := [d for d in documents if d.get("groups") and d["config"]["model"] != "joint"]:
            written.append(out / f"groups_{dataset}.png")
            groups(grouped, dataset, written[-1])
    return written


def buffer_size(documents: list[dict[str, Any]], dataset: str, path: Path) -> None:
    """Class-IL accuracy, mean and standard deviation over seeds; joint training as a dashed line."""
    found: dict = defaultdict(lambda: defaultdict(list))
    for d, key in zip(documents, names(documents), strict=True):
        found[key][d["config"].get("buffer_size", 0)].append(100 * d["class_il"]["average_accuracy"])
    figure = canvas(7.6, 4.8)
    axes = figure.add_subplot()
    all_sizes = sorted({size for sizes in found.values() for size in sizes if size})
    series = [key for key, sizes in found.items() if set(sizes) - {0}]
    for i, key in enumerate(sorted(series)):
        sizes = sorted(set(found[key]) - {0})
        runs = [np.array(found[key][size]) for size in sizes]
        places = np.array([all_sizes.index(size) for size in sizes]) + 0.04 * (i - (len(series) - 1) / 2)
        error = [run.std(ddof=1) if len(run) > 1 else 0 for run in runs]
        means = [run.mean() for run in runs]
        axes.errorbar(places, means, error, marker="o", markersize=4, capsize=3, linewidth=1.3, label=key)
    if "joint" in found:
        level = np.mean([v for runs in found["joint"].values() for v in runs])
        axes.axhline(level, color="0.4", linestyle="--", label="joint")
    axes.set_xticks(range(len(all_sizes)), [str(size) for size in all_sizes])
    n_seeds = len({d["seed"] for d in documents})
    axes.set(xlabel="buffer size", ylabel="class-IL accuracy (%)")
    axes.set_title(f"{dataset}, {n_seeds} seeds (bars: standard deviation)", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    save(figure, path)


def groups(documents: list[dict[str, Any]], dataset: str, path: Path) -> None:
    """Accuracy by tasks since learned: test samples, and training samples by memorization."""
    settings = defaultdict(list)
    for d, key in zip(documents, names(documents), strict=True):
        settings[key, d["config"].get("buffer_size", 0)].append(d)
    keys = sorted(settings)[:MAX_PANELS]
    n_columns = min(3, len(keys))
    n_rows = -(-len(keys) // n_columns)
    figure = canvas(4.4 * n_columns + 0.4, 3.5 * n_rows + 0.7)
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    low, high = documents[0]["config"]["mem_thresholds"]
    labels = {
        "test": "test samples", "high": f"training, score > {high}", "mid": f"training, {low} to {high}",
        "low": f"training, up to {low}",
    }  # fmt: skip
    for axes, key in zip(panels.flat, keys, strict=False):
        for line, colour in LINES.items():
            curves = np.array([by_age(d, line) for d in settings[key]])
            mean = curves.mean(0)
            error = curves.std(0, ddof=1) if len(curves) > 1 else 0 * mean
            axes.plot(mean, color=colour, marker="o", markersize=3.5, label=labels[line])
            axes.fill_between(
                range(len(mean)), mean - error, mean + error, color=colour, alpha=0.15, linewidth=0
            )
        size = f", buffer {key[1]}" if key[1] else ""
        axes.set_title(f"{key[0]}{size} ({len(settings[key])} seeds)", fontsize=10)
        axes.set(xlabel="tasks since learned", ylim=(-2, 102))
        axes.set_xticks(range(len(mean)))
        axes.grid(alpha=0.3)
    for row in panels:
        row[0].set_ylabel("class-IL accuracy (%)")
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    figure.suptitle(f"{dataset}: what is forgotten (shaded: standard deviation over seeds)", fontsize=11)
    save(figure, path)


def by_age(document: dict[str, Any], line: str) -> list[float]:
    """Accuracy in % on tasks learned 0, 1, 2, ... tasks ago, the mean over tasks."""
    rows = document["class_il"]["R"] if line == "test" else document["groups"][line]["class_il"]["R"]
    R = 100 * np.array(rows, dtype=np.float64)
    diagonals = [np.diag(R, -age) for age in range(len(R))]
    return [float(d[~np.isnan(d)].mean()) if (~np.isnan(d)).any() else float("nan") for d in diagonals]
