"""Figures of memorization: scores, proxies, galleries, streams, and runs of main.py.

    python -m memorization.plots --scores runs/mem/mnist.npz --proxies runs/mem/proxies.npz --out_dir figures
    python -m memorization.plots --stream runs/mem/stream.npz --out_dir figures
    python -m memorization.plots --runs runs/maer --out_dir figures

Scores: how they are distributed, how their standard errors shrink, each proxy against them, the most and
least memorized images of each class, and where influences were kept the strongest pairs of a training and
a test image. Runs: accuracy against buffer size with standard deviations over seeds, and accuracy by
memorization over tasks (runs with --memorization_scores). Every figure is written as PDF, SVG and PNG.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.utils.config.options import OptionSet, option
from engram.utils.destinations import FIGURE_FORMATS, check_folder
from engram.utils.errors import UserError


@dataclass(frozen=True)
class PlotOptions(OptionSet):
    """What is drawn, from which files."""

    scores: tuple[str, ...] = option((), "score files of eval_splits, the first with galleries")
    proxies: str | None = option(None, "file of train_proxies, drawn against the first score file")
    stream: str | None = option(None, "file of train_stream (with --store_probs also by group)")
    runs: str | None = option(None, "folder of finished runs of main.py")
    out_dir: str = option("", "folder for the figures (required)")
    figures: tuple[str, ...] = option(FIGURE_FORMATS, "their formats", choices=FIGURE_FORMATS)
    data_dir: str = option("~/.cache/engram", "where data sets lie, for the galleries")


def run(argv: list[str]) -> None:
    """Draw the figures that the given files allow and print their paths."""
    options = cli.parse_options("plots", str(__doc__), PlotOptions, argv)
    cli.require(options, "out_dir")
    if not (options.scores or options.stream or options.runs):
        raise UserError("nothing to draw: give --scores, --stream or --runs (see --help)")
    check_folder(options.out_dir, "--out_dir")
    from engram.memorization import figures  # imports torch and matplotlib, which --help does without

    for path in figures.draw(options):
        print(path)


if __name__ == "__main__":
    sys.exit(cli.main("plots"))
