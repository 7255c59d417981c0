"""Samples to leave out, and runs compared by what they left out: the work of intervention."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram.memorization.intervention import InterventionOptions
from engram.memorization.runs import finished_runs, setting_names
from engram.utils import scores
from engram.utils.errors import UserError
from engram.utils.metrics.statistics import mean_std_ci, paired
from engram.utils.runs.run_record import RunRecord

HEADS = (
    "setting", "% left out", "all samples", "random left out", "most memorized left out",
    "random − memorized", "t", "seeds",
)  # fmt: skip
Accuracies = dict[int, list[float]]  # seed → accuracies in %


def write_choices(options: InterventionOptions) -> None:
    """Write one file for each choice of samples to leave out and print its mean score."""
    content = scores.load(options.scores, "scores")
    if missing := [name for name in ("index", "labels", "order_hash") if name not in content]:
        raise UserError(
            f"--scores {options.scores}: does not say which samples it is of (no {', '.join(missing)}); give "
            "the .npz that eval_splits writes, which does"
        )
    for percent in options.top:
        for name, rows in choices(content, percent, options.n_random, options.seed).items():
            path = Path(options.out_dir).expanduser() / f"{name}.npz"
            settings = {"scores": options.scores, "percent": percent}
            scores.write(path, settings, exclude=content["index"][rows], order_hash=content["order_hash"])
            print(f"{path}: {len(rows)} samples, mean score {content['scores'][rows].mean():.3f}")


def choices(
    content: dict[str, NDArray[Any]], percent: float, n_random: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Name → rows of the score file: the top percentage, and random rows with as many of every class.

    Samples that were not measured (NaN) are not among the candidates.
    """
    values, labels = content["scores"], content["labels"]
    measured = np.isfinite(values)
    n = round(int(measured.sum()) * percent / 100)
    if not n:
        raise UserError(f"--top {percent}: is less than one of {measured.sum()} samples")
    top = np.sort(np.argsort(-values, kind="stable")[:n])  # NaN comes last
    rows = {f"top_{percent:g}": top}
    counts = dict(zip(*np.unique(labels[top], return_counts=True), strict=True))
    for i in range(n_random):
        rng = np.random.default_rng([seed, i])
        drawn = [
            rng.choice(np.flatnonzero((labels == c) & measured), k, replace=False) for c, k in counts.items()
        ]
        rows[f"random_{percent:g}_{i}"] = np.sort(np.concatenate(drawn))
    return rows


def comparison(folder: str) -> str:
    """A Markdown row for each setting and percentage: everything, top and random left out, the difference.

    The seeds are those of all columns, or `5 / 3`: of runs with all samples, and with both choices left out.
    """
    lines = ["| " + " | ".join(HEADS) + " |", "| --- " * len(HEADS) + "|"]
    records = finished_runs(Path(folder).expanduser(), "--results", told_apart=("exclude",))
    for setting, by_choice in accuracies(records).items():
        everything = [np.mean(values) for values in by_choice["all", ""].values()]
        for percent in sorted({p for kind, p in by_choice if kind != "all"}, key=float):
            random, top = by_choice["random", percent], by_choice["top", percent]
            seeds = sorted(random.keys() & top.keys())
            random_means, top_means = ([np.mean(runs[s]) for s in seeds] for runs in (random, top))
            difference = np.array(random_means) - np.array(top_means)
            cells = [mean_std(v) for v in (everything, random_means, top_means, difference)]
            t = f"{paired(random_means, top_means).t:.1f}"
            n_seeds = " / ".join(dict.fromkeys([str(len(everything)), str(len(seeds))]))
            lines.append("| " + " | ".join([setting, percent, *cells, t, n_seeds]) + " |")
    return "\n".join([*lines, "", "Class-IL accuracy in %, mean ± standard deviation over seeds (ddof = 1)."])


def accuracies(records: list[RunRecord]) -> dict[str, dict[tuple[str, str], Accuracies]]:
    """Setting → (all, top or random; percentage left out) → seed → accuracies in %."""
    table: dict[str, dict[tuple[str, str], Accuracies]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for record, name in zip(records, setting_names([r.config for r in records]), strict=True):
        config = record.config
        size = f", buffer {config['buffer_size']}" if "buffer_size" in config else ""
        kind, percent = "all", ""
        if config["exclude"]:
            kind, percent = Path(config["exclude"]).stem.split("_")[:2]
        accuracy = 100 * record.class_il.metric("average_accuracy")
        table[f"{config['dataset']}, {name}{size}"][kind, percent][record.seed].append(accuracy)
    return table


def mean_std(values: ArrayLike) -> str:
    """`86.40 ± 0.52`; without a deviation for one value, a dash for none."""
    spread = mean_std_ci(values)
    if not spread.n:
        return "–"
    return f"{spread.mean:.2f}" + (f" ± {spread.std:.2f}" if spread.n > 1 else "")
