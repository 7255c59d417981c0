"""Intervention: what is lost when the most memorized samples are left out, against as many random ones.

    python -m memorization.intervention --scores runs/mem/digits.npz --top 5,10 --out_dir runs/mem/out
    ... main.py --exclude runs/mem/out/top_10.npz, and with random_10_0.npz, for several seeds ...
    python -m memorization.intervention --results runs/intervention

Source: Feldman & Zhang 2020 (arXiv 2008.03703), section 3.2, figure 2: marginal utility; here in a stream.
Writes, for each percentage, the samples of the highest scores and `--n_random` random choices of the same
number in every class, so that the balance of classes is the same. With --results: mean accuracy of finished
runs by what was left out, and differences paired by seed; `scripts/reproduce/intervention.sh` makes the runs.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.memorization import cli
from engram.memorization.runs import finished, names
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

KINDS = ("top", "random")


@dataclass(frozen=True)
class InterventionOptions(OptionSet):
    """What is left out, or which runs are compared."""

    scores: str | None = option(None, "score file of eval_splits; its samples alone are candidates")
    top: tuple[float, ...] = option((10.0,), "percentages of the samples to leave out", gt=0, lt=100)
    n_random: int = option(5, "random choices for each percentage", ge=1)
    out_dir: str | None = option(None, "folder for the files of samples to leave out")
    results: str | None = option(None, "folder of finished runs to compare instead")
    seed: int = option(0, "of the random choices", ge=0)


def run(argv: list[str]) -> None:
    """Write files, or compare runs."""
    groups = {"intervention": InterventionOptions}
    options = cli.parse("intervention", __doc__.split("\n")[0], groups, argv).intervention
    if options.results:
        print(table(finished(Path(options.results).expanduser(), "--results")))
        return
    cli.require(options, "scores", "out_dir")
    from engram.utils import scores

    content = scores.load(options.scores, "scores", "index", "labels", "order_hash")
    for percent in options.top:
        for label, chosen in choices(content, percent, options.n_random, options.seed).items():
            path = Path(options.out_dir).expanduser() / f"{label}.npz"
            settings = {"scores": options.scores, "percent": percent}
            scores.write(path, settings, exclude=content["index"][chosen], order_hash=content["order_hash"])
            print(f"{path}: {len(chosen)} samples, mean score {content['scores'][chosen].mean():.3f}")


def choices(content: dict[str, Any], percent: float, n_random: int, seed: int) -> dict[str, Any]:
    """Name → rows of the score file: the top percentage, and random rows with as many of every class."""
    import numpy as np

    values, labels = content["scores"], content["labels"]
    n = round(len(values) * percent / 100)
    if not n:
        raise UserError(f"--top {percent}: is less than one of {len(values)} samples")
    top = np.sort(np.argsort(-values, kind="stable")[:n])
    found = {f"top_{percent:g}": top}
    counts = dict(zip(*np.unique(labels[top], return_counts=True), strict=True))
    for i in range(n_random):
        rng = np.random.default_rng([seed, i])
        drawn = [rng.choice(np.flatnonzero(labels == c), k, replace=False) for c, k in counts.items()]
        found[f"random_{percent:g}_{i}"] = np.sort(np.concatenate(drawn))
    return found


def table(documents: list[dict[str, Any]]) -> str:
    """A Markdown row for each setting and percentage: everything, top and random left out, the difference."""
    import numpy as np
    from scipy import stats

    cells: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for d, name in zip(documents, names(documents), strict=True):
        config = d["config"]
        size = f", buffer {config['buffer_size']}" if "buffer_size" in config else ""
        setting = f"{config['dataset']}, {name}{size}"
        kind, percent = "all", ""
        if config["exclude"]:
            kind, percent = Path(config["exclude"]).stem.split("_")[:2]
        cells[setting][percent][kind, d["seed"]].append(100 * d["class_il"]["average_accuracy"])
    heads = ["setting", "% left out", "all samples", "random left out", "most memorized left out"]
    heads += ["random − memorized", "t"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for setting, percents in cells.items():
        whole = [np.mean(v) for v in percents[""].values()]
        for percent in sorted(set(percents) - {""}, key=float):
            own = percents[percent]
            seeds = sorted({s for k, s in own if k == "top"} & {s for k, s in own if k == "random"})
            top, random = (np.array([np.mean(own[kind, s]) for s in seeds]) for kind in KINDS)
            difference = random - top
            t = stats.ttest_rel(random, top).statistic if len(seeds) > 1 else float("nan")
            row = [
                setting,
                percent,
                spread(whole),
                spread(random),
                spread(top),
                spread(difference),
                f"{t:.1f}",
            ]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, "", "Class-IL accuracy in %, mean ± standard deviation over seeds (ddof = 1)."])


def spread(values: Any) -> str:
    """`86.40 ± 0.52`."""
    import numpy as np

    values = np.asarray(values)
    if not len(values):
        return "–"
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(cli.main(run))
