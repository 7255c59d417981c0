r"""Leave-one-out memorization: networks trained on everything, and on everything but one example.

    python -m memorization.train_whole --dataset digits --n_examples 50 --weights_dir runs/mem/loo \
        --out_filename runs/mem/loo.npz

Source: Feldman & Zhang 2020 (arXiv 2008.03703), eq. 1, by its definition:
mem(i) = E[p(label of i) | trained on all] − E[p(label of i) | trained on all but i]. Clean images,
evaluation mode, `--n_repeats` networks for each example and `--n_whole` on everything, standard errors
over networks. Costs examples × repeats networks; train_splits costs a few hundred for all examples.
Differs from the memorization paper's script: several networks for each example instead of one, a clean
view instead of a randomly augmented one. Interrupted, the same command goes on; --n_examples may grow.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.settings import MAX_NETWORKS, StudyConfig
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class WholeOptions(OptionSet):
    """Which examples are left out, and how many networks are trained."""

    weights_dir: str = option("", "folder of the results by network (required)")
    out_filename: str = option("", "score file to write, .npz or .npy (required)")
    n_examples: int = option(50, "examples left out in turn, a random choice; 0: all", ge=0)
    n_repeats: int = option(3, "networks for each example left out", ge=2, le=MAX_NETWORKS)
    n_whole: int = option(16, "networks trained on everything", ge=2, le=MAX_NETWORKS)


@dataclass(frozen=True)
class WholeConfig(StudyConfig):
    """All options of the program train_whole."""

    whole: WholeOptions


def run(argv: list[str]) -> None:
    """Train the networks that are missing, then estimate the scores and write them."""
    config = cli.parse("train_whole", str(__doc__), WholeConfig, argv)
    cli.require(config.whole, "weights_dir", "out_filename")
    cli.check_out(config.whole.out_filename, ".npz", ".npy")
    cli.check_weights_dir(config.whole.weights_dir)
    from engram.memorization import leave_one_out  # imports torch, which --help does without

    leave_one_out.train_and_write(config)


if __name__ == "__main__":
    sys.exit(cli.main("train_whole"))
