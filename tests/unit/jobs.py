"""Jobs for test_job_pools.py: functions that a process of their own can import in no time."""

import os
import signal
import sys
from pathlib import Path

COUNT = 0  # what a job leaves behind in its process


def ending(how: str) -> int:
    """A job: ends as it is told; leaves a trace in its own process."""
    global COUNT
    COUNT += 1
    print(f"here {COUNT}", os.environ.get("CUDA_VISIBLE_DEVICES"), Path.cwd().name, flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("told to")
    return int(how)


def second_time(mark: str) -> int:
    """A job: fails until `mark` exists, and makes it."""
    if Path(mark).exists():
        return 0
    Path(mark).touch()
    return 1


def long(mark: str) -> int:
    """A job: says that it has begun, and that it was asked to end."""

    def asked(number, frame):
        Path(mark).write_text(f"asked {os.getpid()}")
        sys.exit(143)

    signal.signal(signal.SIGTERM, asked)
    Path(mark).write_text(f"begun {os.getpid()}")
    signal.pause()
    return 0


def long_then_short(mark: str) -> int:
    """A job: `long` the first time, and 0 at once when it was asked to end before."""
    return 0 if Path(mark).exists() else long(mark)
