"""Tracking worker: carries out a run's MLflow calls beside it, in a process or in a thread of its own.

MLflow takes longer to import than torch, so a single run gives it a process, which imports it while the
run builds its network. Where MLflow is imported already, as in the workers of a sweep, a thread is enough.
Calls go in through one queue, and what the worker has to tell comes out of another: the run itself never
touches anything that could make it wait for a store that does not answer.
"""

import logging
import multiprocessing
import os
import queue
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from engram.utils.errors import UserError
from engram.utils.processes import child_process_environment
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.mlflow_tracker import MlflowTracker

CONTEXT = multiprocessing.get_context("spawn")
ANSWERED = ("logged_steps", "flush", "finish")  # calls that the run waits for
KILL_SECONDS = 1  # that the system has to end a process that was killed
logger = logging.getLogger(__name__)

Call = tuple[str, tuple[Any, ...]] | None  # the method of `MlflowTracker` and its arguments; None: end
News = tuple[str, Any]  # "warning", "state" (active, run id), "answer" or "ended", and what belongs to it


class TrackingWorker(ABC):
    """Takes calls from `calls` in their order and puts what it has to tell into `news`."""

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
    """A process at the other end of a pipe, which ends with this one, however that ends.

    Two threads stand between the pipe and the queues: a process that was stopped, or that hangs, neither
    takes what is sent to it nor says that it does not.
    """

    def __init__(self, uri: str):
        super().__init__()
        self._pipe, there = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=serve_pipe, args=(there, uri), name="MLflow", daemon=True)
        resource_tracker.ensure_running()  # which lets signals through again when it starts
        with child_process_environment(), held_back(signal.SIGTERM):
            self._process.start()
        there.close()
        for work in (self._deliver, self._collect):
            threading.Thread(target=work, name=f"MLflow {work.__name__}", daemon=True).start()

    def _deliver(self) -> None:
        call: Call = ("", ())
        while call is not None:
            call = self.calls.get()
            try:
                self._pipe.send(call)
            except OSError:
                return

    def _collect(self) -> None:
        try:
            while True:
                self.news.put(self._pipe.recv())
        except (EOFError, OSError):
            self.news.put(("ended", None))

    def _wait(self, seconds: float) -> None:
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(KILL_SECONDS)


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
    """Carry out the calls until None comes; tell the state after each: it is also the sign of life."""
    try:
        store.import_mlflow(uri)
    except UserError as error:
        tell("warning", f"{error}; training goes on")
        tell("state", (False, None))
        return
    tell("state", (True, None))  # the import takes long enough to be a piece of work of its own
    first = calls.get()
    if first is None:
        return
    name, (flags, run_dir, *resuming) = first
    assert name == "start", name
    tracker = MlflowTracker(uri, run_dir, warn=partial(tell, "warning"))
    tracker.start(flags, *resuming)
    tell("state", (tracker.active, tracker.run_id))
    while (call := calls.get()) is not None:
        name, arguments = call
        answer = getattr(tracker, name)(*arguments)
        tell("state", (tracker.active, tracker.run_id))
        if name in ANSWERED:
            tell("answer", answer)


def serve_pipe(pipe: Connection, uri: str) -> None:
    """Carry out the calls that come through the pipe, until it closes."""
    calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, calls), daemon=True).start()
    serve(calls, partial(_tell, pipe), uri)


def _receive(pipe: Connection, calls: "queue.SimpleQueue[Call]") -> None:
    """Take calls while others are at work, and end with the run even in the middle of a call."""
    try:
        while (call := pipe.recv()) is not None:
            calls.put(call)
    except (EOFError, OSError):  # the run is over, or was killed: another may be about to continue it
        pass
    os._exit(0)


def _tell(pipe: Connection, kind: str, content: Any) -> None:
    try:
        pipe.send((kind, content))
    except OSError:  # as above
        os._exit(0)
