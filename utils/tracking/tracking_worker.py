"""Tracking worker: carries out a run's MLflow calls beside it, in a process or in a thread of its own.

MLflow takes longer to import than torch, so a single run gives it a process, which imports it while the
run builds its network. Where MLflow is imported already, as in the workers of a sweep, a thread is enough.
Calls go in through one queue, and what the worker has to tell comes out of another: the run itself never
touches anything that could make it wait for a store that does not answer.

A run whose results are safe may end before MLflow has everything: `HAND_OVER` lets the process go on alone.
It takes the run's lock with it, leaves the terminal, writes its warnings to the run's log, and ends itself.
"""

import logging
import multiprocessing
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from engram.utils.errors import UserError
from engram.utils.processes import child_process_environment
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.mlflow_tracker import MlflowTracker, NullTracker, Tracker

HAND_OVER = "hand_over"  # the call with which the run leaves the rest to the process
ANSWERED = ("logged_steps", "flush", "finish")  # calls that the run waits for
KILL_SECONDS = 1  # that the system has to end a process that was killed
ALONE_SECONDS = 600  # that a process has to end what was left to it; then the next start of the run sends it
PROGRAM = "import sys; from engram.utils.tracking.tracking_worker import main; main(int(sys.argv[1]))"
logger = logging.getLogger(__name__)

Call = tuple[str, tuple[Any, ...]] | None  # the method of `MlflowTracker` and its arguments; None: end
News = tuple[str, Any]  # "warning", "state" (of `state_of`), "answer" or "ended", and what belongs to it


class TrackingWorker(ABC):
    """Takes calls from `calls` in their order and puts what it has to tell into `news`."""

    # Whether it can go on when this process has ended; it then holds the lock of the descriptor `claim`.
    outlives_run: ClassVar[bool] = False
    claim: int | None = None

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()

    def end(self, seconds: float) -> None:
        """Drop the calls that have not begun, and wait so many seconds at most for the one that has."""
        while not self.calls.empty():
            self.calls.get()
        self.calls.put(None)
        self._wait(seconds)

    @abstractmethod
    def _wait(self, seconds: float) -> None:
        """Wait for the end of the process or thread; afterwards it does no further call."""


class WorkerThread(TrackingWorker):
    """A thread of this process. One that a call never returns to is left behind and ends with the process."""

    def __init__(self, uri: str):
        super().__init__()
        self._thread = threading.Thread(target=self._serve, args=(uri,), name="MLflow", daemon=True)
        self._thread.start()

    def _serve(self, uri: str) -> None:
        try:
            serve(self.calls, lambda kind, content: self.news.put((kind, content)), uri)
        finally:
            self.news.put(("ended", None))

    def _wait(self, seconds: float) -> None:
        self._thread.join(seconds)


class WorkerProcess(TrackingWorker):
    """A process at the other end of a pipe, which ends with this one, however that ends, unless the run has
    left the rest to it.

    Two threads stand between the pipe and the queues: a process that was stopped, or that hangs, neither
    takes what is sent to it nor says that it does not.
    """

    outlives_run = True

    def __init__(self, uri: str):
        super().__init__()
        self._pipe, there = multiprocessing.Pipe()
        with there, child_process_environment(), held_back(signal.SIGTERM):
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(there.fileno())], pass_fds=[there.fileno()]
            )
        self._pipe.send(uri)  # it may carry a password, which a command line would show to everybody
        for work in (self._deliver, self._collect):
            threading.Thread(target=work, name=f"MLflow {work.__name__}", daemon=True).start()

    def _deliver(self) -> None:
        call: Call = ("", ())
        while call is not None:
            call = self.calls.get()
            try:
                self._pipe.send(call)
                if call and call[0] == HAND_OVER:
                    with socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
                        socket.send_fds(end, [b" "], [self.claim])
            except OSError:
                return

    def _collect(self) -> None:
        try:
            while True:
                self.news.put(self._pipe.recv())
        except (EOFError, OSError):
            self.news.put(("ended", None))

    def _wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_SECONDS)


@contextmanager
def held_back(number: int) -> Iterator[None]:
    """This process gets the signal afterwards, one that starts inside never: schedulers send it to all, and
    the run decides when both end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(calls: "queue.SimpleQueue[Call]", tell: Callable[[str, Any], None], uri: str) -> None:
    """Carry out the calls until None comes; tell the state after each and after each request that it takes:
    it is also the sign of life.
    """
    tracker: Tracker = NullTracker()
    try:
        store.import_mlflow(uri)
    except UserError as error:
        tell("warning", f"{error}; training goes on")
        tell("state", (False, None, None))
    else:
        tell("state", (True, None, None))
        first = calls.get()
        if first is None:
            return
        name, (flags, run_dir, *opening) = first
        assert name == "start", name
        tracker = opened = MlflowTracker(
            uri, run_dir, partial(tell, "warning"), lambda: tell("state", state_of(opened))
        )
        opened.start(flags, *opening)
        tell("state", state_of(tracker))
    while (call := calls.get()) is not None:
        name, arguments = call
        if name == HAND_OVER:
            (completion,) = arguments
            return completion(tracker)
        answer = getattr(tracker, name, lambda *ignored: None)(*arguments)
        tell("state", state_of(tracker))
        if name in ANSWERED:
            tell("answer", answer)


def state_of(tracker: Tracker) -> tuple[bool, str | None, str | None]:
    """What the run is told of its tracker: whether what is logged arrives, its run and its experiment."""
    return tracker.active, tracker.run_id, tracker.experiment


# --- the process itself --------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Serve the run at the other end of the pipe."""
    pipe = Connection(descriptor)
    uri = pipe.recv()
    RunEnd(pipe).serve(uri)


class RunEnd:
    """The process's end of the pipe: when it closes the process ends, unless the rest was left to it."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe
        self.log: Path | None = None  # of the run that has left the rest to this process
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()

    def serve(self, uri: str) -> None:
        """Carry out the calls that come through the pipe, until it closes."""
        threading.Thread(target=self._receive, daemon=True).start()
        serve(self.calls, self._tell, uri)

    def _receive(self) -> None:
        """Take calls while others are at work, and end with the run even in the middle of a call."""
        try:
            while (call := self.pipe.recv()) is not None:
                if call[0] == HAND_OVER:
                    return self._go_on_alone(*call[1])
                self.calls.put(call)
        except (EOFError, OSError):  # the run is over, or was killed: another may be about to continue it
            pass
        os._exit(0)

    def _go_on_alone(self, completion: Callable[[Tracker], None], log: Path) -> None:
        """Leave the run, and say so; from here on its end is no longer ours."""
        with socket.socket(fileno=os.dup(self.pipe.fileno())) as end:
            socket.recv_fds(end, 1, 1)  # the descriptor stays open, and so the lock stays taken
        self.log = log
        leave_terminal()
        alarm = threading.Timer(ALONE_SECONDS, os._exit, [1])
        alarm.daemon = True
        alarm.start()
        self.calls.put((HAND_OVER, (completion,)))
        with suppress(OSError):
            self.pipe.send(("answer", True))

    def _tell(self, kind: str, content: Any) -> None:
        if self.log:
            if kind == "warning":
                with suppress(OSError), open(self.log, "a", encoding="utf-8") as file:
                    file.write(f"{content}\n")
            return
        try:
            self.pipe.send((kind, content))
        except OSError:
            if not self.log:  # as in `_receive`
                os._exit(0)


def leave_terminal() -> None:
    """Close the output, which somebody may wait for, and leave the terminal; SIGTERM ends this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # also in the threads that this one starts
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
