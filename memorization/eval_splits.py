"""Memorization scores with standard errors from the networks that train_splits has trained.

    python -m memorization.eval_splits --weights_dir runs/mem/mnist --out_filename runs/mem/mnist.npz

The file holds, for each example, `scores` (mean softmax probability of the label with minus without the
example in the training set), `stderr`, `ci95` (half the width of Student's 95 % interval), the same for right
or wrong predictions (`scores_01`, `stderr_01`), `mean_in`, `mean_out`, `n_in`, `n_out`, `index` (position in
the training set), `labels` and the split-half `reliability` by Pearson's correlation, which looks at values,
and `reliability_spearman`, which looks at ranks. A score is NaN where fewer than two networks had the example
or had it not. Clean images, evaluation mode. The flags of train_splits are read from the folder.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.settings import MAX_NETWORKS, MIN_NETWORKS, StudyConfig
from engram.memorization.train_splits import SplitOptions
from engram.utils.config.options import OptionError, OptionSet, option


@dataclass(frozen=True)
class EvalOptions(OptionSet):
    """What is written into the score file."""

    out_filename: str = option("", "score file to write, .npz, or .npy for scores alone (required)")
    store_probs: bool = option(
        False, "also keep loss (−log probability), correct and member (R, n): any estimator can be recomputed"
    )
    influence: int = option(
        0, "also keep, for every test example, this many training examples: those that help it most", ge=0
    )


@dataclass(frozen=True)
class TrainedOptions(SplitOptions):
    """Which of the trained networks are evaluated, and where they are stored."""

    n_repeats: int = option(
        0, f"use the first networks only, this many, at least {MIN_NETWORKS}; 0: all there are",
        ge=0, le=MAX_NETWORKS,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.n_repeats < MIN_NETWORKS:
            raise OptionError(
                f"--n_repeats {self.n_repeats}: scores need at least {MIN_NETWORKS} networks, better 100 "
                "(0: all there are)"
            )


@dataclass(frozen=True)
class EvalConfig(StudyConfig):
    """All options of the program eval_splits."""

    evaluation: EvalOptions
    splits: TrainedOptions


def run(argv: list[str]) -> None:
    """Evaluate the networks, estimate the scores and write them to --out_filename."""
    config = cli.parse("eval_splits", str(__doc__), EvalConfig, argv)
    cli.require(config.splits, "weights_dir")
    cli.require(config.evaluation, "out_filename")
    cli.check_out(config.evaluation.out_filename, ".npz", ".npy")
    from engram.memorization import split_scores  # imports torch, which --help does without

    split_scores.write(config)


if __name__ == "__main__":
    sys.exit(cli.main("eval_splits"))
