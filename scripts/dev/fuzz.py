"""Seeded fuzz of every program: odd flags, and damaged copies of every file that a run leaves.

    python scripts/dev/fuzz.py --trials 2000 --seed 1        half of each kind; the last line counts them
    python scripts/dev/fuzz.py --seed 1 --only files:17      one trial again: every failure prints this line
    python scripts/dev/fuzz.py --seed 1 --only files:17,230  several of them

A trial fails where a program shows a traceback, ends with an undocumented exit code, leaves temporary files,
computes something else from a damaged file than from the whole one, or changes other files when it fails.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engram.scripts.dev import fuzz_flags
from engram.scripts.dev.fuzz_files import FileFuzz
from engram.scripts.dev.fuzz_trial import warm_up
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.door import guarded

KINDS = ("flags", "files")
Trial = Callable[[int, int, Path], list[str]]  # (number, seed, folder) → what was wrong


def trials(folder: Path, kinds: tuple[str, ...]) -> dict[str, Trial]:
    """Kind → its trials; what they share is made in the folder."""
    warm_up()
    made: dict[str, Trial] = {}
    if "flags" in kinds:
        made["flags"] = fuzz_flags.trial
    if "files" in kinds:
        made["files"] = FileFuzz(folder).trial
    return made


def failures(
    trial: Trial, numbers: Iterable[int], seed: int, folder: Path
) -> Iterator[tuple[int, list[str]]]:
    """The number of each trial that found something wrong, and what."""
    for number in numbers:
        own = folder / f"trial-{number}"
        own.mkdir()
        wrong = trial(number, seed, own)
        shutil.rmtree(own)
        if wrong:
            yield number, wrong


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the trials; returns 1 where one of them failed."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="of both kinds (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument(
        "--only", metavar="KIND[:N,...]", help="one kind, or these trials of it: flags, files:17,230"
    )
    args = parser.parse_args(argv)
    check_bounds(args, trials=COUNT)
    kind, _, chosen = (args.only or "").partition(":")
    kinds = (kind,) if kind else KINDS
    if not set(kinds) <= set(KINDS) or not all(number.isdecimal() for number in (chosen or "0").split(",")):
        parser.error(f"--only {args.only}: expected flags, files, or one of these with numbers, flags:17,230")
    numbers = (
        sorted({int(number) for number in chosen.split(",")}) if chosen else range(args.trials // len(kinds))
    )
    n_failed, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="engram-fuzz-") as temporary:
        for name, trial in trials(Path(temporary), kinds).items():
            for failed, wrong in failures(trial, numbers, args.seed, Path(temporary)):
                n_failed += 1
                print(*wrong, sep="\n")
                print(
                    f"    again: python scripts/dev/fuzz.py --seed {args.seed} --only {name}:{failed}",
                    flush=True,
                )
    n = len(numbers) * len(kinds)
    print(f"{n} trials, {n_failed} failures, seed {args.seed}, {time.monotonic() - started:.0f} s")
    return int(n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
