"""Correlations of proxies, or of other scores, with memorization scores: how much to trust a proxy.

    python -m memorization.correlate --scores runs/mem/mnist.npz --against runs/mem/proxies.npz

Pearson's, Spearman's and Kendall's correlations with 95 % bootstrap intervals, over all examples that both
files have, and Spearman's inside each class. Where the score file keeps per-network outputs (eval_splits
--store_probs), also the noise ceiling: what two independent estimates of the scores correlate by, and its
square root, more than which no proxy can be expected to reach.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.memorization import cli
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class CorrelateOptions(OptionSet):
    """What is compared."""

    scores: str | None = option(None, "score file, .npz or .npy (required)")
    against: tuple[str, ...] = option((), "files of scores or of proxies, A.npz,B.npz,... (required)")
    out_filename: str | None = option(None, "also write the table as .csv")
    n_bootstrap: int = option(500, "resamplings of the examples behind each interval", ge=0)
    seed: int = option(0, "of the resampling", ge=0)


def run(argv: list[str]) -> None:
    """Print the table, write it if asked."""
    options = cli.parse("correlate", __doc__.split("\n")[0], {"correlate": CorrelateOptions}, argv).correlate
    cli.require(options, "scores")
    if not options.against:
        raise UserError("--against is missing (see --help)")
    import numpy as np

    from engram.utils import scores

    rng = np.random.default_rng(options.seed)
    content = scores.load(options.scores, "scores")
    rows = [row for path in options.against for row in compare(content, path, options.n_bootstrap, rng)]
    rows.sort(key=lambda row: -abs(row["spearman"]))
    print(markdown(rows))
    print(ceiling(content, rng))
    if options.out_filename:
        write_csv(rows, Path(options.out_filename).expanduser())


def vectors(content: dict[str, Any], path: str) -> dict[str, Any]:
    """Name → (n,) vector of a file: all its proxies, or its scores under the file's name."""
    if "proxies" in content:
        return dict(zip(map(str, content["names"]), content["proxies"], strict=True))
    if "scores" not in content:
        raise UserError(f"--against {path}: holds neither 'scores' nor 'proxies'")
    return {Path(path).stem: content["scores"]}


def compare(content: dict[str, Any], path: str, n_bootstrap: int, rng) -> list[dict[str, Any]]:
    """A row for each vector in the file, on the examples that both files have."""
    import numpy as np

    from engram.memorization.agreement import by_class, correlations
    from engram.utils import scores

    other = scores.load(path)
    hashes = [str(c["order_hash"]) for c in (content, other) if "order_hash" in c]
    if len(set(hashes)) > 1:
        raise UserError(f"--against {path}: belongs to another data set or sample order")
    n_all = max(len(content["scores"]), max(len(v) for v in vectors(other, path).values()))
    own, theirs = (c.get("index", np.arange(n_all)) for c in (content, other))
    common, mine, yours = np.intersect1d(own, theirs, return_indices=True)
    if len(common) < 10:
        raise UserError(
            f"--against {path}: {len(common)} examples in common; both files must cover the same data"
        )
    labels = content["labels"][mine] if "labels" in content else None
    costs = dict(zip(map(str, other.get("names", ())), other.get("cost", ()), strict=True))
    rows = []
    for name, vector in vectors(other, path).items():
        a, b = content["scores"][mine], vector[yours]
        row: dict[str, Any] = {"name": name, "n": len(common)}
        for measure, (value, low, high) in correlations(a, b, n_bootstrap, rng).items():
            row |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
        each = by_class(a, b, labels) if labels is not None else {}
        row["per_class"] = [value for value in each.values() if not np.isnan(value)]
        row["ms_per_1000"] = 1000 * costs[name] if name in costs else float("nan")
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, best first."""
    heads = ["proxy", "Pearson", "Spearman", "Kendall", "Spearman per class: mean (min to max)"]
    heads += ["ms per 1,000", "examples"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [row["name"]]
        for measure in ("pearson", "spearman", "kendall"):
            low, high = row[f"{measure}_low"], row[f"{measure}_high"]
            cells.append(f"{row[measure]:.3f} [{low:.3f}, {high:.3f}]")
        each = row["per_class"]
        cells.append(f"{sum(each) / len(each):.3f} ({min(each):.3f} to {max(each):.3f})" if each else "–")
        cells += [
            "–" if row["ms_per_1000"] != row["ms_per_1000"] else f"{row['ms_per_1000']:.1f}",
            str(row["n"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ceiling(content: dict[str, Any], rng) -> str:
    """What the noise of the scores themselves allows."""
    if not {"loss", "member"} <= content.keys():
        return "noise ceiling: unknown; write the scores with eval_splits --store_probs"
    import numpy as np

    from engram.memorization.agreement import MEASURES
    from engram.memorization.estimator import split_half_reliability

    values = np.exp(-content["loss"].astype(np.float64))
    n = len(values)
    found = []
    for name in ("pearson", "spearman"):
        r = split_half_reliability(values, content["member"], MEASURES[name], rng)
        found.append(f"{name.title()} {r:.3f} (proxies at most {np.sqrt(max(r, 0)):.3f})")
    return f"noise ceiling: two independent estimates by {n} networks would correlate by {', '.join(found)}"


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """One line for each row; classes separated by spaces."""
    import csv

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"per_class": " ".join(f"{value:.4f}" for value in row["per_class"])})


if __name__ == "__main__":
    sys.exit(cli.main(run))
