"""Do prompts, adapters, LoRA and alignment each beat their own control, at rates chosen alike?

    python scripts/studies/prompts.py runs/prompts-small [--seeds 0,1,2] [--rates 0.001,0.01] [--jobs 2]
    python scripts/studies/prompts.py runs/prompts-small -- FLAGS OF MAIN.PY FOR EVERY RUN
    python scripts/report.py prompts runs/prompts-small

The rows are those of scripts/reproduce/prompts.yaml without their papers' optimizers and rates: here all have
one optimizer, Adam unless the flags behind -- say otherwise, so that a method and its control differ in the
mechanism alone. First every row that trains is run with each rate of --rates on --validation % of the
training data held out, with a seed and an order of classes of its own; the best class-IL accuracy chooses the
rate, the smaller one among equals. Then every row is run with its rate and each of the seeds, measured on
test data. So all rows have as many tries; `slca` and `mos` without a mechanism have the rate of the whole
method.
Runs lie in FOLDER/tuning and FOLDER/runs; finished ones are not repeated.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engram.scripts import sweep
from engram.scripts.tune import numbers
from engram.utils import files
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.runs.run_record import RunRecord
from engram.utils.sweeps.run_index import RunIndex
from engram.utils.sweeps.sweep_spec import SweepSpec, read_spec

ROWS = Path(__file__).parent.parent / "reproduce" / "prompts.yaml"
OPTIMIZER = ("optimizer", "lr", "optim_mom", "optim_wd", "lr_scheduler")  # of the papers
# Sizes for few images and narrow networks: projections of ranpac (10,000; as many as images is where least
# squares without a ridge is worst), components of coda_prompt (100).
SMALL = {"ranpac": {"rp_size": 2000}, "coda_prompt": {"coda_components": 20}}
TUNING_SEED = 100

Row = dict[str, Any]  # flags


def rows(only: str = ".") -> list[Row]:
    """The flags of each row but for those of the optimizer; `only`: a regular expression found in them."""
    listed = [
        {k: v for k, v in row.items() if k not in OPTIMIZER} | SMALL.get(row["model"], {})
        for row in read_spec(ROWS).runs
    ]
    try:
        chosen = [row for row in listed if re.search(only, text(row))]
    except re.error as error:
        raise UserError(f"--only {only}: no regular expression ({error})") from None
    if not chosen:
        raise UserError(f"--only {only}: no row of {ROWS.name} matches")
    return chosen


def text(row: Row) -> str:
    """The row on one line, as `sgd train_classes=task tune=lora`."""
    return " ".join([row["model"], *(f"{k}={v}" for k, v in row.items() if k != "model")])


def tuned_row(row: Row) -> Row | None:
    """The row whose rate a row takes: itself mostly; None for a row that trains nothing."""
    if row["model"] in ("ncm", "slda") or (row["model"] == "ranpac" and "first_task" not in row):
        return None
    return {k: v for k, v in row.items() if k not in ("ca_epochs", "merge_momentum")}


def run_all(name: str, runs: list[Row], fixed: Row, folder: Path, jobs: str) -> None:
    """Run what is not finished of these flags; the study's file is kept. Ends where it is stopped."""
    spec = SweepSpec(name, fixed, {}, tuple(runs))
    file = folder / f"{name}.yaml"
    files.write_text(yaml.safe_dump(spec.document(), sort_keys=False), file)
    code = sweep.main([str(file), "--output_dir", str(folder / name), "--jobs", jobs])
    if code > 128:  # a signal; a run that failed is no reason to stop
        sys.exit(code)


def accuracy(row: Row, fixed: Row, index: RunIndex) -> float | None:
    """The class-IL accuracy of a row's run; None where it did not finish, as one that diverged."""
    (run,) = SweepSpec(fixed=fixed, runs=(row,)).resolved()
    stored = index.find(run.key)
    if stored is None or not stored.finished:
        return None
    return RunRecord.read(stored.run_dir.path).class_il.metric("average_accuracy")


def best_rate(row: Row, rates: Sequence[float], fixed: Row, index: RunIndex) -> float | None:
    """The rate of the highest accuracy on held-out data, the smallest of several; None: no run finished."""
    tried = {rate: accuracy({**row, "lr": rate}, fixed, index) for rate in sorted(rates)}
    finished = {rate: value for rate, value in tried.items() if value is not None}
    if not finished:
        print(f"left out: {text(row)}: no run of --rates finished", file=sys.stderr)
        return None
    return max(finished, key=lambda rate: finished[rate])


def study(args: argparse.Namespace, fixed: Row) -> None:
    """Choose the rates, then run every row with its own."""
    listed = rows(args.only)
    shared = {text(row): tuned for row in listed if (tuned := tuned_row(row))}
    distinct = {text(tuned): tuned for tuned in shared.values()}.values()
    tries = [{**row, "lr": rate} for row in distinct for rate in args.rates]
    held_out = {**fixed, "validation": args.validation, "seed": TUNING_SEED}
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    run_all("tuning", tries, held_out, folder, args.jobs)
    index = RunIndex({str(folder / "tuning")})
    chosen = {name: best_rate(row, args.rates, held_out, index) for name, row in shared.items()}
    rates = {text(row): chosen.get(text(row), args.rates[0]) for row in listed}  # ncm and others use none
    runs = [{**row, "lr": lr} for row in listed if (lr := rates[text(row)]) is not None]
    for seed in args.seeds:
        run_all("runs", [{**row, "seed": seed} for row in runs], fixed, folder, args.jobs)


def parser() -> argparse.ArgumentParser:
    """The parser of the flags that the runs do not have."""
    made = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="where tuning/ and runs/ are made")
    made.add_argument("--rates", type=numbers(float), default=(0.0005, 0.002, 0.008, 0.03), help="tried")
    made.add_argument("--seeds", type=numbers(int), default=(0, 1, 2), help="separated by commas")
    made.add_argument("--validation", type=float, default=20.0, help="%% held out to choose a rate (20)")
    made.add_argument("--only", default=".", help="regular expression; rows without a match are left out")
    made.add_argument("--jobs", default="2", help="runs at a time (default: 2)")
    return made


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser().parse_args(argv[:end])
    if not 0 < args.validation < 100:  # without it the rates would be chosen on test data
        raise UserError(f"--validation {args.validation:g}: expected a share in %, above 0 and below 100")
    if TUNING_SEED in args.seeds:
        raise UserError(f"--seeds: {TUNING_SEED} is the seed that rates are chosen with")
    check_folder(args.folder, "folder")
    given = {name: sweep.one_value(name, values) for name, values in sweep.grouped(argv[end + 1 :]).items()}
    study(args, {"optimizer": "adam", "ignore_other_metrics": "1", "permute_classes": "1"} | given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
