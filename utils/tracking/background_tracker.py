"""Background tracker: MLflow beside the run, which waits for it at few points and nowhere for ever.

What is logged is handed to a worker (`tracking_worker.py`), which carries out the calls in their order by
`MlflowTracker`. What it warns of comes back and is told by the run. A store that does not answer in time is
given up: the run goes on and ends as it would, and its folder says that something has yet to be sent.
"""

import logging
import math
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engram.utils.config.config import Config
from engram.utils.errors import UserError
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking import mlflow_tracker
from engram.utils.tracking.mlflow_tracker import Tracker
from engram.utils.tracking.tracking_worker import HAND_OVER, TrackingWorker, WorkerProcess, WorkerThread

logger = logging.getLogger(__name__)


@contextmanager
def prepared(config: Config) -> Iterator["BackgroundTracker | None"]:
    """What this run's `open_tracker` is given; None where nothing is logged."""
    follows = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one logs
    if follows or not mlflow_tracker.wanted(config):
        yield None
        return
    if find_spec("mlflow") is None:
        raise UserError("MLflow is not installed: pip install mlflow, or train without it: --disable_log")
    uri = store.resolve_uri(config.log.tracking_uri)
    tracker = BackgroundTracker(WorkerThread(uri) if "mlflow" in sys.modules else WorkerProcess(uri))
    try:
        yield tracker
    finally:
        tracker.close()


class BackgroundTracker(Tracker):
    """`MlflowTracker` at work elsewhere; `active`, `run_id` and `experiment` are what it said last."""

    # More than a store takes to fail by itself: its lock 60 s, a request and its repetitions 33 s.
    answer_seconds = 90.0  # the longest wait without a sign of life
    stop_seconds = 15.0  # the longest wait of a run that was asked to end: schedulers kill it after 30
    end_seconds = 3.0  # that a worker with nothing left to do has to end

    def __init__(self, worker: TrackingWorker):
        self._worker = worker
        self._active = True
        self._run_id: str | None = None
        self._experiment: str | None = None
        self.started = time.time()  # the run begins with this tracker
        self._answer: tuple[Any] | None = None
        self._handed_over = False

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

    @property
    def experiment(self) -> str | None:
        """Id of the run's experiment; None until the run is open."""
        self._listen()
        return self._experiment

    def start(self, flags: dict[str, Any], run_dir: Path, *opening: Any) -> None:
        """As `MlflowTracker.start`; nothing is waited for."""
        self._send("start", flags, run_dir, *opening)

    def wait_until_open(self, seconds: float) -> None:
        """Wait until the run is open, the store is given up, or so many seconds have passed."""
        end = time.monotonic() + seconds
        while self._active and self._run_id is None and (left := end - time.monotonic()) > 0:
            self._hear(left)

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
        """Ask the worker and wait for its answer; empty when none comes."""
        return self._ask(math.inf, "logged_steps", key) or set()

    def flush(self) -> None:
        """Wait until everything sent so far is done, or given up."""
        self._ask(math.inf, "flush")

    def finish(self, status: str, hurried: bool = False, ended: float | None = None) -> None:
        """Close the run in MLflow and wait until that is done; `hurried`, for `stop_seconds` in all."""
        self._ask(self.stop_seconds if hurried else math.inf, "finish", status, False, ended)

    def hand_over(self, completion: Callable[[Tracker], None], log: Path, claim: int) -> bool:
        """Let the worker's process do the rest, `completion`, after this one has ended; whether it will.

        It does first what it was sent before. What it warns of goes to the file `log`; it keeps the lock of
        the descriptor `claim` until it ends, so that nobody sends the same meanwhile.
        """
        if not self._worker.outlives_run or not self.active:
            return False
        self._worker.claim = claim
        self._handed_over = bool(self._ask(math.inf, HAND_OVER, completion, log))
        return self._handed_over

    def close(self) -> None:
        """End what talks to MLflow, unless it was told to go on."""
        if not self._handed_over:
            self._worker.end(self.end_seconds if self._active else 0)

    # --- the worker --------------------------------------------------------------------------------

    def _send(self, name: str, *arguments: Any) -> None:
        if self._active:
            self._worker.calls.put((name, arguments))

    def _ask(self, seconds: float, name: str, *arguments: Any) -> Any:
        """The answer to a call; None when the worker gives no sign of life, or `seconds` have passed."""
        self._answer = None
        self._send(name, *arguments)
        end = time.monotonic() + seconds
        while self._active and self._answer is None:
            left = end - time.monotonic()
            if left <= 0 or not self._hear(min(self.answer_seconds, left)):
                self._lost(f"no answer for {min(seconds, self.answer_seconds):g} s")
        return self._answer[0] if self._answer else None

    def _listen(self) -> None:
        while self._active and self._hear(0):
            pass

    def _hear(self, seconds: float) -> bool:
        """Take in one piece of news; False when none comes within so many seconds."""
        try:
            kind, content = self._worker.news.get(timeout=seconds)
        except queue.Empty:
            return False
        if kind == "warning":
            logger.warning(content)
        elif kind == "answer":
            self._answer = (content,)
        elif kind == "state":
            self._active, self._run_id, self._experiment = content
        else:
            self._lost("its process has ended")
        return True

    def _lost(self, reason: str) -> None:
        if self._active:
            self._active = False
            logger.warning(f"MLflow: {reason}; nothing more is logged there, training goes on")
