"""Does the order of the tasks matter less to MAS when its importances are weighed consistently?

    python scripts/studies/mas_orders.py [--data_dir DIR] [--seeds 0,1,2,3,4] [--jobs 2]

Split MNIST, five pairs of digits, one head for each, one epoch (the benchmark's own settings), learned in
three orders: as numbered, backwards, and from the middle. Every task's importance counts as it is
(`--mas_merge sum`), or by weights α_t that give all tasks the same total (`--mas_consistent`). The strength
of each is the largest of its grid that costs at most half a point against the best, on held-out data of
another order and seed. The spread between orders is the standard deviation over orders of the final average
accuracy, taken for each seed; its mean over seeds is compared, paired by seed. It holds the noise of single
runs too, so that of the orders' means over seeds is told beside it, with a bootstrap interval over seeds.
About six seconds a run and core; finished runs are used again.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from engram.scripts import sweep
from engram.scripts.analysis.table import mean_std
from engram.scripts.studies.program import add_seeds, run_study, seeds_of, study_parser
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.metrics.statistics import standard_deviation
from engram.utils.runs.run_record import FILE_NAME, RunRecord, read_all

ORDERS = {
    "0-1 first": "0,1,2,3,4,5,6,7,8,9",
    "8-9 first": "8,9,6,7,4,5,2,3,0,1",
    "4-5 first": "4,5,0,1,8,9,2,3,6,7",
}
TUNING = "6,7,2,3,0,1,8,9,4,5"
# Grids of λ: consistent weights share λ out among the tasks, plain ones give it to each.
GRIDS = {False: ["0.001", "0.003", "0.01", "0.03"], True: ["0.003", "0.01", "0.03", "0.1"]}
TOLERANCE = 0.005  # of accuracy: among equals the one that holds firmest
TITLES = {False: "sum", True: "consistent"}
FIXED = ["--model", "mas", "--mas_n", "1000", "--dataset", "seq-mnist", "--multi_head", "--disable_log"]


def runs(folder: Path, grid: list[str], fixed: list[str], jobs: str) -> list[RunRecord]:
    """The records of a sweep's runs that finished, those of earlier starts included."""
    sweep.main([*grid, "--output_dir", str(folder), "--jobs", jobs, "--retries", "0", "--", *FIXED, *fixed])
    return [record for _, record in read_all(folder.glob(f"*/*/*/{FILE_NAME}")) if record.finished]


def accuracy(record: RunRecord) -> float:
    """The final average accuracy of a run."""
    return record.task_il.metric("average_accuracy")


def strength(folder: Path, consistent: bool, fixed: list[str], jobs: str) -> str:
    """The largest λ of the grid within `TOLERANCE` of the best on held-out data; what diverged has none."""
    grid = ["--mas_lambda", *GRIDS[consistent]]
    held_out = ["--class_order", TUNING, "--seed", "100", "--validation", "10"]
    held_out += ["--mas_consistent", str(consistent)]
    tuned = runs(folder / f"tune-{TITLES[consistent]}", grid, [*held_out, *fixed], jobs)
    if not tuned:
        raise UserError(f"{folder}: no run of the grid finished; see above")
    enough = max(map(accuracy, tuned)) - TOLERANCE
    return str(max(run.config["mas_lambda"] for run in tuned if accuracy(run) >= enough))


def table(accuracies: dict[bool, np.ndarray], strengths: dict[bool, str]) -> str:
    """Write the table of `accuracies`: (orders, seeds) for plain and for consistent importances."""
    columns = [*ORDERS, "spread between orders", "spread of their means"]
    lines = [f"| importances | λ | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    spreads = {way: standard_deviation(values) for way, values in accuracies.items()}
    for way, values in accuracies.items():
        of_means = mean_std([standard_deviation(values.mean(1))])
        cells = [TITLES[way], strengths[way], *map(mean_std, values), mean_std(spreads[way]), of_means]
        lines.append("| " + " | ".join(cells) + " |")
    less = spreads[False] - spreads[True]
    lines += ["", f"The spread of consistent weights is smaller by {mean_std(less)} points, paired by seed; "
              f"in {int((less > 0).sum())} of {len(less)} seeds smaller."]  # fmt: skip
    if len(less) > 1:
        low, high = (100 * end for end in interval(accuracies))
        lines[-1] += f" That of the means: smaller by {low:.2f} to {high:.2f} points (95 %)."
    return "\n".join(lines)


def interval(accuracies: dict[bool, np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval over seeds of how much smaller the spread of the orders' means is."""

    def less(*values: np.ndarray, axis: int) -> np.ndarray:
        means = np.stack([row.mean(axis=axis) for row in values])
        plain, consistent = means.reshape(2, -1, *means.shape[1:])
        return standard_deviation(plain) - standard_deviation(consistent)

    rows = [*accuracies[False], *accuracies[True]]
    drawn = stats.bootstrap(rows, less, paired=True, vectorized=True, method="percentile", rng=0)
    return drawn.confidence_interval


def study(args: argparse.Namespace) -> str:
    """Run what is missing; returns the table."""
    seeds, fixed = list(map(str, seeds_of(args))), ["--data_dir", args.data_dir]
    accuracies, strengths = {}, {}
    for consistent, title in TITLES.items():
        strengths[consistent] = strength(args.output_dir, consistent, fixed, args.jobs)
        grid = ["--seed", *seeds, "--class_order", *ORDERS.values()]
        flags = ["--mas_lambda", strengths[consistent], "--mas_consistent", str(consistent), *fixed]
        folder = args.output_dir / f"{title}-{strengths[consistent]}"
        records = runs(folder, grid, flags, args.jobs)
        by_key = {
            (",".join(map(str, run.config["class_order"])), str(run.seed)): accuracy(run) for run in records
        }
        if len(by_key) < len(seeds) * len(ORDERS):
            raise UserError(f"{folder}: not all runs finished; see above")
        accuracies[consistent] = np.array([[by_key[o, seed] for seed in seeds] for o in ORDERS.values()])
    return table(accuracies, strengths)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    parser = study_parser(__doc__, "runs/mas-orders")
    add_seeds(parser)
    parser.add_argument("--jobs", default="2", help="runs at a time (default: 2)")
    return run_study(study, "mas orders", parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
