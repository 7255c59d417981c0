"""The door of every program: whatever goes wrong inside leaves as one line and an exit code.

@guarded
def main(argv: list[str] | None = None) -> int: ...
"""

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from engram.utils.credentials import redact
from engram.utils.errors import UserError

Arguments = ParamSpec("Arguments")
WRONG_INPUT, INTERRUPTED = 2, 130
BROKEN = 70  # as in sysexits.h; 1 is a run that diverged, or a failed run of a sweep
MAX_LENGTH = 300  # characters of an error that are shown; the log has all of them


def guarded(program: Callable[Arguments, int | None]) -> Callable[Arguments, int]:
    """Make a program return its exit code, 0 for None, after one line about whatever it raised."""

    @functools.wraps(program)
    def enter(*args: Arguments.args, **keywords: Arguments.kwargs) -> int:
        try:
            return program(*args, **keywords) or 0
        except UserError as error:
            # of torchrun's processes one on each machine says it
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"error: {redact(str(error))}", file=sys.stderr)
            return WRONG_INPUT
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:  # MemoryError, OSError, RecursionError, and what nobody thought of
            print(f"error: {_shortened(error)} (details: {_write_log(error)})", file=sys.stderr)
            return BROKEN

    return enter


def _shortened(error: Exception) -> str:
    """Name and message of the error in one line, without passwords."""
    lines = redact(f"{type(error).__name__}: {error}").split("\n")
    text = " ".join(lines[0].split()).rstrip(": ")
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."


def _write_log(error: Exception) -> str:
    """Write the traceback to a file; returns its path, or the line of code where nothing can be written."""
    try:
        number, path = tempfile.mkstemp(prefix="engram-error-", suffix=".log")
        with open(number, "w", encoding="utf-8", errors="replace") as file:
            file.write(redact("".join(traceback.format_exception(error))))
        return path
    except OSError:
        frames = traceback.extract_tb(error.__traceback__)
        return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}; no log could be written"
