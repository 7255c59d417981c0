"""The one module of the tests that reads a clock: wait for what other processes and threads bring about.

Everything else in the tests is decided by conditions, counted calls and clocks that tests set themselves, so
that a busy machine changes no outcome. A wait fails only after LIMIT seconds, which stand for "never".
"""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

LIMIT = 600  # seconds
T = TypeVar("T")


def wait_until(condition: Callable[[], T], process: subprocess.Popen | None = None, what: str = "") -> T:
    """The first true value of `condition`. Fails when `process` ends before that, or after LIMIT seconds.

    what: is said of a failure.
    """
    end = time.monotonic() + LIMIT
    while True:
        ended = process is not None and process.poll() is not None  # asked first: its last deed counts
        value = condition()
        if value:
            return value
        assert not ended, f"the process ended with code {process.returncode} before that; {what}"
        assert time.monotonic() < end, f"not within {LIMIT} s; {what}"
        time.sleep(0.01)


def exit_code(process: subprocess.Popen) -> int:
    """How a process ends; fails when it does not."""
    return process.wait(timeout=LIMIT)


class TickingClock:
    """Stands for `time.monotonic` and its kin: each reading takes `step` seconds, and nothing else does."""

    def __init__(self, step: float = 0.001):
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def spend(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@contextmanager
def stalled_server() -> Iterator[str]:
    """The URI of a server that takes connections and never says a word; the system chooses its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
