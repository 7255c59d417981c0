"""What a program says on a terminal and nowhere else."""

import sys


def say_start(doing: str) -> None:
    """Say what begins, before imports that take seconds; a file or a pipe has no use for it."""
    if sys.stderr.isatty():
        print(f"{doing} ...", file=sys.stderr, flush=True)
