r"""Correlations of proxies, or of other scores, with memorization scores: how much to trust a proxy.

    python -m memorization.correlate --scores runs/mem/mnist.npz --against runs/mem/proxies.npz

    python -m memorization.correlate --scores cifar10_01.npy --against cifar10_10.npy --dataset cifar10 \
        --dataset_size 0.1

Pearson's, Spearman's and Kendall's correlations with 95 % bootstrap intervals, over all examples that both
files have, and Spearman's inside each class. A bare vector (.npy) names no positions: it is of the whole data
set, or of the part that --class_range and --dataset_size draw as train_splits does and the memorization paper
did; whichever of these has its length. Where the score file, or else one beside it, is of eval_splits, also
the noise ceiling: what two independent estimates of the scores correlate by, and its square root, about the
most that a proxy can be expected to reach. With --store_probs it is that of the examples compared.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from engram.memorization import cli
from engram.memorization.settings import DATASETS
from engram.utils.config.options import SEEDS, OptionSet, option
from engram.utils.destinations import check_file

OWN = ("imagefolder", "arrays")  # of a user, which take more flags; a score file of theirs names these


@dataclass(frozen=True)
class CorrelateOptions(OptionSet):
    """The files that are compared, and how."""

    scores: str = option("", "score file, .npz or .npy (required)")
    against: tuple[str, ...] = option((), "files of scores or of proxies, A.npz,B.npz,... (required)")
    dataset: str | None = option(
        None, "data set of bare vectors (default: the one that another file names)",
        choices=tuple(name for name in DATASETS if name not in OWN), aliases=("dataset_name",),
    )  # fmt: skip
    dataset_size: tuple[float, ...] = option((), "shares of it that bare vectors are of, 0.1,0.3", gt=0, le=1)
    class_range: str | None = option(None, "classes a to b−1 that bare vectors are of, given as a,b")
    data_dir: str = option("~/.cache/engram", "where data sets lie, for the labels behind bare vectors")
    out_filename: str | None = option(None, "also write the table as .csv")
    n_bootstrap: int = option(
        500, "resamplings of the examples behind each interval; 0: none", ge=0, le=1_000_000
    )
    seed: int = option(0, "of the resampling", ge=0, lt=SEEDS)


def run(argv: list[str]) -> None:
    """Print the table of correlations and write it if asked."""
    options = cli.parse_options("correlate", str(__doc__), CorrelateOptions, argv)
    cli.require(options, "scores", "against")
    if options.out_filename:
        check_file(options.out_filename, "--out_filename", (".csv",), _is_table)
    from engram.memorization import correlation_table  # imports torch, which --help does without

    correlation_table.write(options)


def _is_table(path: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith("name,n,")


if __name__ == "__main__":
    sys.exit(cli.main("correlate"))
