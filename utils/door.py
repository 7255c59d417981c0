"""The door of every program: whatever goes wrong inside leaves as one line and an exit code.

@guarded
def main(argv: list[str] | None = None) -> int: ...
"""

import atexit
import errno
import functools
import os
import re
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import engram
from engram.utils.config import outside
from engram.utils.credentials import redact
from engram.utils.errors import UserError

Arguments = ParamSpec("Arguments")
WRONG_INPUT, INTERRUPTED = 2, 130
READER_GONE = 141  # 128 + SIGPIPE, what a shell shows for other programs before `| head`
BROKEN = 70  # as in sysexits.h; 1 is a run that diverged, or a failed run of a sweep
# What a given path may be: too long, a folder, a file where a folder is needed, not there, forbidden.
GIVEN_PATHS = {
    errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.EACCES,
    errno.EPERM, errno.EROFS,
}  # fmt: skip
MAX_LENGTH = 300  # characters of an error that are shown; the log has all of them


def guarded(program: Callable[Arguments, int | None]) -> Callable[Arguments, int]:
    """Make a program return its exit code, 0 for None, after one line about whatever it raised."""

    @functools.wraps(program)
    def enter(*args: Arguments.args, **keywords: Arguments.kwargs) -> int:
        _register_quiet_end()
        try:
            try:
                return _exit_code(lambda: program(*args, **keywords))
            finally:  # --help leaves by SystemExit; what it has printed may still be in the buffer
                _flush()
        except BrokenPipeError:
            _silence()
            return READER_GONE
        except OSError as error:  # of the flush: standard output is a file on a full disk
            _silence()
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
            return BROKEN

    return enter


@functools.cache
def _register_quiet_end() -> None:
    """Register `_quiet_end` once; what is registered first is called last."""
    atexit.register(_quiet_end)


def _quiet_end() -> None:
    """Keep a page of Triton's about its own reference counts from following the program's last line.

    torchvision imports it by way of PyTorch; its bindings (nanobind) count references when the interpreter
    is gone already, write to the file descriptor of standard error, and have no switch.
    """
    if "triton" in sys.modules and sys.stderr is not None:
        sys.stderr.flush()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)


def _refuse_another_checkout() -> None:
    """Raise `UserError` for a program of one checkout with an environment that has another one installed.

    `python scripts/NAME.py` imports what `pip install -e` made importable, `python main.py` what lies beside
    it: without this line, some programs of a second clone would be those of the first.
    """
    started = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if engram.is_installed or started.suffix != ".py":
        return
    imported = Path(engram.__file__).resolve().parent
    checkouts = [folder for folder in started.resolve().parents[:3] if (folder / "engram.py").is_file()]
    if checkouts and checkouts[0] != imported:  # the nearest: a clone may lie in another one
        raise UserError(
            f"{started} is of the checkout {checkouts[0]}, and Python imports engram from {imported}: "
            f"run that one's programs, or pip install -e {checkouts[0]}"
        )


def _exit_code(program: Callable[[], int | None]) -> int:
    """Run the program and tell what it raised; raises `BrokenPipeError` if nobody reads the output."""
    try:
        _refuse_another_checkout()
        return program() or 0
    except UserError as error:
        # of torchrun's processes one on each machine says it
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {redact(str(error))}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise
        if error.errno not in GIVEN_PATHS or error.filename is None:
            return _broken(error)
        print(f"error: {_shortened(error)} (details: {_write_log(error)})", file=sys.stderr)
        return WRONG_INPUT
    except Exception as error:  # OSError, RecursionError, and what nobody thought of
        return _too_large(error) if _lacks_memory(error) else _broken(error)


def _broken(error: Exception) -> int:
    """Tell what nobody expected, and where if it was in a user's own plugin; returns the exit code."""
    print(f"error: {_shortened(error)} (details: {_write_log(error)})", file=sys.stderr)
    if line := outside.line_at_fault(error):
        print(f"  in your {line}", file=sys.stderr)
    return BROKEN


def _lacks_memory(error: Exception) -> bool:
    """Whether there was too little memory: torch has a class for a GPU's, and only words for a CPU's."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"MemoryError", "OutOfMemoryError"}) or "allocate memory" in str(error)


def _too_large(error: Exception) -> int:
    """Tell that the memory is too small for what the flags ask for; returns the exit code."""
    amount = re.search(r"allocate ([\d.]+ \w+)", str(error))
    asked = f": {amount[1]} were asked for at once" if amount else ""
    print(
        f"error: not enough memory on this computer or its GPU{asked}; a smaller batch, buffer, network or "
        f"image takes less (details: {_write_log(error)})",
        file=sys.stderr,
    )
    return WRONG_INPUT


def _flush() -> None:
    if sys.stdout is not None:  # it is None where it was closed: `>&-`
        sys.stdout.flush()


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that its reader has closed; a connection may break, too."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # there is no standard output, or it is no file
        return False


def _silence() -> None:
    """Let what is still in the buffer go nowhere: the interpreter would write it at its end, and complain."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


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
