"""What a program says beside its results, on standard error."""

import functools
import sys


def say_start(doing: str) -> None:
    """Say what begins, before imports that take seconds; a file or a pipe has no use for it."""
    if sys.stderr.isatty():
        print(f"{doing} ...", file=sys.stderr, flush=True)


@functools.cache
def say_once(line: str) -> None:
    """Say a note; a process that reads the same flags several times does not repeat it."""
    print(line, file=sys.stderr, flush=True)
