"""The memorization paper's tables from run folders: accuracy and FM by policy and size of the memory.

Called by `scripts/report.py memorization FOLDER`. Differences are paired by seed against the class-balanced
reservoir (`er --memory balanced`), with their standard deviation, t statistic and two-sided p. Also writes
memorization.tex and memorization.csv into the folder.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import stats

from engram.memorization.runs import names
from engram.scripts.analysis.run_set import left_out, one_per_seed, pairs

BASELINE = "er balanced"
ORDER = ("er", BASELINE, "maer min", "maer middle", "maer max", "maer_high min", "maer_adaptive")
Table = dict[str, dict[int, dict[int, dict]]]  # setting → buffer size → seed → run


def collect(documents: list[dict]) -> dict[str, Table]:
    """Benchmark → its runs by setting, buffer size and seed."""
    found: dict[str, Table] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    configs = [document["config"] for document in documents]
    keys = [
        (c["dataset"], n, c.get("buffer_size", 0)) for c, n in zip(configs, names(documents), strict=True)
    ]
    for (dataset, name, size), runs in one_per_seed(documents, keys).items():
        found[dataset][name][size] = {run["seed"]: run for run in runs}
    return found


def values(runs: Iterable[dict], field: str) -> np.ndarray:
    """A metric of the class-IL view in %, one a run."""
    return np.array([100 * run["class_il"][field] for run in runs])


def spread(numbers: np.ndarray) -> str:
    """`55.25 ± 4.66`."""
    return f"{numbers.mean():.2f}" + (f" ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else "")


def difference(runs: dict[int, dict], baseline: dict[int, dict]) -> dict[str, float] | None:
    """Accuracy minus the baseline's, paired by seed; None without two seeds in common."""
    found, _ = pairs(runs.values(), baseline.values())
    if len(found) < 2:
        return None
    own, other = (values(half, "average_accuracy") for half in zip(*found, strict=True))
    gain = own - other
    test = stats.ttest_1samp(gain, 0)
    return {"mean": gain.mean(), "sd": gain.std(ddof=1), "t": float(test.statistic), "p": float(test.pvalue)}


def settings(table: Table) -> list[str]:
    """The paper's order, then others by name; joint training last."""
    rank = {key: i for i, key in enumerate(ORDER)}
    return sorted(table, key=lambda key: (key == "joint", rank.get(key, len(rank)), key))


def sizes(table: Table) -> list[int]:
    """All sizes of the memory that occur."""
    return sorted({size for runs in table.values() for size in runs if size})


def runs_of(table: Table, key: str, size: int) -> dict[int, dict]:
    """The runs of a setting by seed; joint training has no memory and stands in every column."""
    return table.get(key, {}).get(0 if key == "joint" else size, {})


def cell(table: Table, key: str, size: int) -> tuple[str, str, str]:
    """Accuracy, FM and paired difference of a setting, `–` where there are no runs."""
    runs = runs_of(table, key, size)
    if not runs:
        return "–", "–", "–"
    parts = [spread(values(runs.values(), field)) for field in ("average_accuracy", "fm")]
    found = difference(runs, runs_of(table, BASELINE, size)) if key != BASELINE else None
    gain = (
        f"{found['mean']:+.2f} ± {found['sd']:.2f} (t {found['t']:.1f}, p {found['p']:.3f})" if found else "–"
    )
    return parts[0], parts[1], gain


def unpaired(table: Table) -> str:
    """Names the seeds that a setting does not share with the baseline although both have them."""
    cells = [(key, size) for key in table for size in sizes(table)]
    both = [(runs_of(table, *at).values(), runs_of(table, BASELINE, at[1]).values()) for at in cells]
    return left_out(seed for own, other in both for seed in pairs(own, other)[1])


def markdown(documents: list[dict]) -> str:
    """Three tables for each benchmark: accuracy, forgetting, paired differences."""
    parts = []
    titles = ("class-IL accuracy", "FM (forgetting over tasks)", f"accuracy minus {BASELINE}, paired by seed")
    for dataset, table in collect(documents).items():
        n_seeds = len({seed for runs in table.values() for own in runs.values() for seed in own})
        for k, title in enumerate(titles):
            head = "| buffer size | " + " | ".join(map(str, sizes(table))) + " |"
            lines = [
                f"**{dataset}**: {title}, {n_seeds} seeds",
                "",
                head,
                "| --- " * (1 + len(sizes(table))) + "|",
            ]
            for key in settings(table):
                row = [cell(table, key, size)[k] for size in sizes(table)]
                if set(row) != {"–"}:
                    lines.append("| " + " | ".join([key, *row]) + " |")
            parts.append("\n".join(lines))
        parts += filter(None, [unpaired(table)])
    return "\n\n".join(parts)


def latex(documents: list[dict]) -> str:
    """A tabular for each benchmark: accuracy and FM in each cell, as the paper prints them."""
    parts = []
    for dataset, table in collect(documents).items():
        lines = [rf"% {dataset}", r"\begin{tabular}{l" + "cc" * len(sizes(table)) + "}", r"\toprule"]
        heads = [rf"\multicolumn{{2}}{{c}}{{{size}}}" for size in sizes(table)]
        lines.append("buffer & " + " & ".join(heads) + r" \\")
        lines.append(" & " + " & ".join(["Acc & FM"] * len(heads)) + r" \\ \midrule")
        for key in settings(table):
            cells = [part for size in sizes(table) for part in cell(table, key, size)[:2]]
            text = " & ".join([key, *cells]).replace("±", r"$\pm$").replace("_", r"\_").replace("–", "--")
            lines.append(text + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def write_files(documents: list[dict], folder: Path) -> None:
    """memorization.tex and memorization.csv."""
    (folder / "memorization.tex").write_text(latex(documents), encoding="utf-8")
    with open(folder / "memorization.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dataset", "setting", "buffer_size", "seed", "accuracy", "fm", "forgetting"])
        for dataset, table in collect(documents).items():
            for key, by_size in table.items():
                for size, runs in by_size.items():
                    for seed, run in sorted(runs.items()):
                        own = run["class_il"]
                        cells = [own["average_accuracy"], own["fm"], own["forgetting"]]
                        writer.writerow([dataset, key, size, seed, *cells])
