"""The MER paper's tables from run folders: RA, LA and BTI beside the published values, and a figure.

Called by `scripts/report.py mer FOLDER`. The published values and their standing: published_mer.yaml.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from engram.scripts.analysis.run_set import one_per_seed

BENCHMARKS = {
    "mnist-rotations": "Rotations",
    "mnist-permutations": "Permutations",
    "mnist-manypermutations": "Many Permutations",
}
PUBLISHED = Path(__file__).with_name("published_mer.yaml")
COLUMNS = ("average_accuracy", "learning_accuracy", "bti")


def key_of(document: dict) -> tuple[str, int]:
    """(method with its variant, memories)."""
    config = document["config"]
    variant = config.get(f"{config['model']}_variant")
    named = config["model"] if variant in (None, "standard", "mer") else f"{config['model']} {variant}"
    memories = config.get("buffer_size", 0)
    many = config["dataset"] == "mnist-manypermutations" and config["model"] == "gem"
    return named, round(memories, -2) if many else memories  # 100 tasks x 51 = 5100: the paper's 5,120


def collect(documents: list[dict]) -> dict[str, dict[tuple[str, int], list[dict]]]:
    """Benchmark → (method, memories) → runs that differ in the seed alone."""
    shown = [document for document in documents if document["config"]["dataset"] in BENCHMARKS]
    keys = [(document["config"]["dataset"], key_of(document)) for document in shown]
    found = defaultdict(dict)
    for (benchmark, key), runs in one_per_seed(shown, keys).items():
        found[benchmark][key] = runs
    return found


def cells(runs: list[dict]) -> list[str]:
    """RA, LA, BTI as mean ± std over seeds, in %."""
    parts = []
    for column in COLUMNS:
        values = 100 * np.array([run["class_il"][column] for run in runs])
        deviation = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        parts.append(f"{values.mean():.2f}{deviation}")
    return parts


def rows(found: dict, benchmark: str) -> list[list[str]]:
    """One row a setting: method, memories, ours and published, examples/s, seeds."""
    lines, known = [], yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[benchmark]
    for key in sorted(found[benchmark], key=lambda k: (-k[1], k[0])):
        runs = found[benchmark][key]
        published = known.get(f"{key[0]} {key[1]}", [None] * 3)
        ours = [
            f"{mine} ({'–' if theirs is None else theirs})"
            for mine, theirs in zip(cells(runs), published, strict=True)
        ]
        lines.append([key[0], str(key[1] or "–"), *ours, str(len(runs))])
    return lines


HEAD = ["method", "memories", "RA (published)", "LA (published)", "BTI (published)", "seeds"]


def markdown(documents: list[dict]) -> str:
    """The tables, one per benchmark."""
    found, parts = collect(documents), []
    for benchmark, title in BENCHMARKS.items():
        if benchmark in found:
            lines = [HEAD, ["---"] * len(HEAD), *rows(found, benchmark)]
            parts.append(f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def write_csv(documents: list[dict], path: Path) -> None:
    """The same rows with the benchmark in front."""
    found = collect(documents)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["benchmark", *HEAD])
        writer.writerows([b, *row] for b in BENCHMARKS if b in found for row in rows(found, b))


def plot(documents: list[dict], path: Path) -> None:
    """Retained accuracy, the mean over the tasks seen, after each task; one panel per benchmark."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = collect(documents)
    shown = [b for b in BENCHMARKS if b in found]
    figure = Figure(figsize=(6.4 * len(shown), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, benchmark in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        for key, runs in sorted(found[benchmark].items()):
            if key[1] in (0, 5100, 5120):
                R = np.mean([np.array(run["class_il"]["R"], dtype=float) for run in runs], axis=0)
                retained = [100 * R[i, : i + 1].mean() for i in range(len(R))]
                axes.plot(retained, label=f"{key[0]}")
        axes.set(
            title=f"{BENCHMARKS[benchmark]}, 5,120 memories",
            xlabel="after task",
            ylabel="mean accuracy on tasks seen (%)",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def write_files(documents: list[dict], folder: Path) -> None:
    """mer.csv and mer.png."""
    write_csv(documents, folder / "mer.csv")
    plot(documents, folder / "mer.png")
