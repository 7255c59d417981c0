"""Background tracker: MLflow in a process of its own, so that a run does not wait for it.

MLflow takes longer to import than torch. Its process starts with the run and imports it while the run
builds its network and trains; calls go there through a pipe and are carried out in their order by
`MlflowTracker`. What it warns of comes back and is told by the run. When the run ends in any way, the
pipe closes and the process with it.
"""

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engram.utils.config.config import Config
from engram.utils.errors import UserError
from engram.utils.processes import child_process_environment
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking import mlflow_tracker
from engram.utils.tracking.mlflow_tracker import MlflowTracker, Tracker

CONTEXT = multiprocessing.get_context("spawn")
ANSWERED = ("logged_steps", "flush", "finish")  # calls that the run waits for
logger = logging.getLogger(__name__)


@contextmanager
def prepared(config: Config) -> Iterator["TrackerProcess | None"]:
    """The process that this run's `open_tracker` is given; None where none is needed.

    Where MLflow is already imported, as in a sweep's workers, calling it directly is quicker.
    """
    follows = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one logs
    if follows or not mlflow_tracker.wanted(config) or "mlflow" in sys.modules:
        yield None
        return
    if find_spec("mlflow") is None:
        raise UserError("MLflow is not installed: pip install mlflow, or train without it: --disable_log")
    process = TrackerProcess(store.resolve_uri(config.log.tracking_uri))
    try:
        yield process
    finally:
        process.close()


class TrackerProcess(Tracker):
    """`MlflowTracker` at the other end of a pipe; `active` and `run_id` are what it said last."""

    def __init__(self, uri: str):
        self.uri = uri
        self._pipe, there = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=serve, args=(there, uri), name="MLflow", daemon=True)
        resource_tracker.ensure_running()  # which lets signals through again when it starts
        with child_process_environment(), held_back(signal.SIGTERM):
            self._process.start()
        there.close()
        self._active, self._run_id, self._answer = True, None, None

    @property
    def active(self) -> bool:
        """Whether what is logged arrives, as far as is known."""
        self._listen()
        return self._active

    @property
    def run_id(self) -> str | None:
        """None until the run is open."""
        self._listen()
        return self._run_id

    def start(self, flags: dict[str, Any], run_dir: Path, resume_id: str | None, resumed: bool) -> None:
        """As `MlflowTracker.start`; nothing is waited for."""
        self._send("start", flags, run_dir, resume_id, resumed)

    def log_history(self, rows: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
        """Sent, not waited for, as are the following."""
        self._send("log_history", rows)

    def log_artifacts(self, paths: list[Path]) -> None:
        """The files must stay until `flush`."""
        self._send("log_artifacts", paths)

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Send the tags, all in one message."""
        self._send("set_tags", tags)

    def logged_steps(self, key: str) -> set[int]:
        """Ask the process and wait for its answer."""
        return self._ask("logged_steps", key) or set()

    def flush(self) -> None:
        """Wait until everything sent so far is done."""
        self._ask("flush")

    def finish(self, status: str) -> None:
        """Close the run in MLflow and wait until that is done."""
        self._ask("finish", status)

    def close(self) -> None:
        """End the process that talks to MLflow."""
        self._pipe.close()
        self._process.join()

    # --- the pipe ----------------------------------------------------------------------------------

    def _send(self, name: str, *arguments: Any) -> None:
        if self._active:
            try:
                self._pipe.send((name, arguments))
            except OSError:
                self._lost()

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._answer = None
        self._send(name, *arguments)
        while self._active and self._answer is None:
            self._hear()
        return self._answer[0] if self._answer else None

    def _listen(self) -> None:
        while self._active and self._pipe.poll():
            self._hear()

    def _hear(self) -> None:
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            self._lost()
            return
        if kind == "warning":
            logger.warning(content)
        elif kind == "answer":
            self._answer = (content,)
        else:
            self._active, self._run_id = content

    def _lost(self) -> None:
        if self._active:
            self._active = False
            logger.warning("MLflow: its process has ended; nothing more is logged there, training goes on")


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


def serve(pipe: Connection, uri: str) -> None:
    """Carry out what comes through the pipe, until it closes."""
    calls: queue.Queue = queue.Queue()
    threading.Thread(target=_receive, args=(pipe, calls), daemon=True).start()
    log = logging.getLogger("engram.utils.tracking.mlflow_tracker")
    log.addHandler(_Forwarding(pipe))
    log.propagate = False
    try:
        store.import_mlflow(uri)
    except UserError as error:
        _tell(pipe, "warning", f"{error}; training goes on")
        _tell(pipe, "state", (False, None))
        return
    name, (flags, run_dir, *resuming) = calls.get()
    assert name == "start", name
    tracker = MlflowTracker(uri, run_dir)
    tracker.start(flags, *resuming)
    _tell(pipe, "state", (tracker.active, tracker.run_id))
    while True:
        name, arguments = calls.get()
        was_active = tracker.active
        answer = getattr(tracker, name)(*arguments)
        if tracker.active != was_active:
            _tell(pipe, "state", (tracker.active, tracker.run_id))
        if name in ANSWERED:
            _tell(pipe, "answer", answer)


def _receive(pipe: Connection, calls: queue.Queue) -> None:
    """Take calls while others are at work, so that the run never waits to send one."""
    try:
        while True:
            calls.put(pipe.recv())
    except (EOFError, OSError):  # the run is over, or was killed: another may be about to continue it
        os._exit(0)


def _tell(pipe: Connection, kind: str, content: Any) -> None:
    try:
        pipe.send((kind, content))
    except OSError:  # as above
        os._exit(0)


class _Forwarding(logging.Handler):
    """Sends what is logged to the run."""

    def __init__(self, pipe: Connection):
        super().__init__(logging.WARNING)
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send the log record to the parent process."""
        _tell(self.pipe, "warning", record.getMessage())
