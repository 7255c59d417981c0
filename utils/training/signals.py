"""SIGTERM and SIGINT as a request that the training loop answers between two steps."""

import signal
from types import FrameType
from typing import Any


class InterruptedRunError(Exception):
    """The run stopped on request after saving a checkpoint; `code` is the exit code (128 + signal)."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code, self.status = 128 + number, "interrupted"


class StoppedRunError(InterruptedRunError):
    """The run stopped where --stop_after told it to: nothing went wrong."""

    def __init__(self, n_tasks: int):
        Exception.__init__(self, f"stopped after {n_tasks} of its tasks (--stop_after)")
        self.code, self.status = 0, "stopped"


class SignalHandler:
    """Context manager: `requested` is the number of the signal received, 0 while there is none.

    A second signal ends the process at once, as if nothing had been installed.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}  # signal → the handler that it had

    def __enter__(self) -> "SignalHandler":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        self._restore()
