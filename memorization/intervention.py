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
from dataclasses import dataclass

from engram.memorization import cli
from engram.utils.config.options import SEEDS, OptionSet, option
from engram.utils.destinations import check_folder


@dataclass(frozen=True)
class InterventionOptions(OptionSet):
    """Which samples are left out, or which runs are compared."""

    scores: str = option("", "score file of eval_splits; its samples alone are candidates")
    top: tuple[float, ...] = option((10.0,), "percentages of the samples to leave out", gt=0, lt=100)
    n_random: int = option(5, "random choices for each percentage", ge=1, le=100_000)
    out_dir: str = option("", "folder for the files of samples to leave out")
    results: str = option("", "folder of finished runs to compare instead")
    seed: int = option(0, "of the random choices", ge=0, lt=SEEDS)


def run(argv: list[str]) -> None:
    """Write the files of samples to leave out, or compare finished runs."""
    options = cli.parse_options("intervention", str(__doc__), InterventionOptions, argv)
    if not options.results:
        cli.require(options, "scores", "out_dir")
        check_folder(options.out_dir, "--out_dir")
    from engram.memorization import left_out_samples  # imports torch, which --help does without

    if options.results:
        print(left_out_samples.comparison(options.results))
    else:
        left_out_samples.write_choices(options)


if __name__ == "__main__":
    sys.exit(cli.main("intervention"))
