"""The program around a study: its command line, and the table that it prints and puts into a file."""

import argparse
from collections.abc import Callable
from pathlib import Path

from engram.scripts.analysis.run_set import commits
from engram.scripts.analysis.table import check_update, update
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.errors import UserError
from engram.utils.runs.run_record import FILE_NAME, read_all


def study_parser(doc: str, output_dir: str) -> argparse.ArgumentParser:
    """Build a parser with the flags that all studies have; `doc` is the study's docstring."""
    parser = CheckedParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="~/.cache/engram", help="where data lies or is downloaded to")
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir), help=f"(default: {output_dir})")
    parser.add_argument("--update", type=Path, metavar="FILE", help="file whose marked part is replaced")
    return parser


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Give a study that is repeated the flag --seeds."""
    parser.add_argument("--seeds", default="0,1,2,3,4", help="separated by commas")


def seeds_of(args: argparse.Namespace) -> list[int]:
    """The seeds of --seeds, a flag that `add_seeds` has given the parser."""
    if not all(seed.isdecimal() for seed in args.seeds.split(",")):
        raise UserError(f"--seeds {args.seeds}: expected whole numbers separated by commas, e.g. 0,1,2")
    return [int(seed) for seed in args.seeds.split(",")]


def run_study(study: Callable[[argparse.Namespace], str], marker: str, args: argparse.Namespace) -> int:
    """Run a study that returns its table; print it, and put it between the markers of --update's file.

    Below the table stand the devices and the commits of the runs in --output_dir, if it holds any.
    Returns the exit code: 2 after an error of the user.
    """
    check_update(args.update, marker)
    check_folder(args.output_dir, "--output_dir")
    if "seeds" in args:
        seeds_of(args)  # refuses here, not after data was read
    text = study(args) + _provenance(args.output_dir)
    print(text)
    if args.update:
        update(args.update, marker, text)
    return 0


def _provenance(folder: Path) -> str:
    """The paragraph that says where the runs below the folder ran and what made them; empty without runs."""
    runs = [run for _, run in read_all(sorted(folder.rglob(FILE_NAME)))]
    devices = ", ".join(sorted({run.device or "unknown" for run in runs}))
    return f"\n\ndevices: {devices}; commits: {commits(runs)}." if runs else ""
