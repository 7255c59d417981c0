"""A store, or what talks to it, that never answers: nothing waits for it for ever, and the run says so.

Where a repair is missing these tests hang until the suite's own limit ends them.
"""

import logging
import os
import queue
import signal
import threading

import pytest

from engram.utils.errors import UserError
from engram.utils.sweeps import parent_runs
from engram.utils.tracking import background_tracker, legacy_import, mlflow_store, tracking_worker
from engram.utils.tracking.background_tracker import BackgroundTracker
from engram.utils.tracking.deadline import within
from engram.utils.tracking.legacy_file_store import OldRun
from engram.utils.tracking.tracking_worker import TrackingWorker, WorkerProcess, WorkerThread
from tests.processes import alive
from tests.waiting import TickingClock


class Silent(TrackingWorker):
    """Takes calls and does nothing."""

    def _wait(self, seconds: float) -> None:
        """It has ended already."""


class Chatting(queue.SimpleQueue):
    """News without end: the state, and never an answer."""

    def get(self, block=True, timeout=None):
        return "state", (True, "id", "1")


def test_a_worker_that_never_answers_is_given_up(caplog, tmp_path):
    tracker = BackgroundTracker(Silent())
    tracker.answer_seconds = 0.01
    tracker.start({}, tmp_path, None, True)
    assert tracker.logged_steps("a") == set() and not tracker.active
    tracker.flush()
    tracker.finish("finished")
    tracker.close()
    assert [record.message for record in caplog.records] == [
        "MLflow: no answer for 0.01 s; nothing more is logged there, training goes on"
    ]


def test_the_address_of_a_run_is_waited_for_a_time_in_all(monkeypatch):
    clock = TickingClock(step=1.0)
    monkeypatch.setattr(background_tracker.time, "monotonic", clock)
    worker, states = Silent(), [(True, None, None)] * 2 + [(True, "id", "7")]
    monkeypatch.setattr(
        worker, "news", type("News", (), {"get": lambda self, timeout: ("state", states.pop(0))})()
    )
    tracker = BackgroundTracker(worker)
    tracker.wait_until_open(100.0)
    assert not states and tracker._experiment == "7"
    tracker._run_id, states[:] = None, [(True, None, None)] * 50
    tracker.wait_until_open(5.0)
    assert 40 < len(states) < 50 and tracker._active


def test_a_run_that_is_to_end_waits_for_a_slow_store_for_a_time_in_all(monkeypatch):
    monkeypatch.setattr(background_tracker.time, "monotonic", TickingClock(step=1.0))
    worker = Silent()
    worker.news = Chatting()
    tracker = BackgroundTracker(worker)
    monkeypatch.setattr(tracker, "_listen", lambda: None)
    tracker.finish("interrupted", hurried=True)
    assert not tracker._active


def test_signs_of_life_renew_the_patience_of_a_finished_run(monkeypatch):
    clock = TickingClock()
    monkeypatch.setattr(background_tracker.time, "monotonic", clock)
    worker = Silent()
    tracker, waits = BackgroundTracker(worker), []

    def get(timeout):
        waits.append(timeout)
        clock.spend(timeout - 1)
        return ("answer", None) if len(waits) == 20 else ("state", (True, "id", "1"))

    monkeypatch.setattr(worker, "news", type("News", (), {"get": staticmethod(get)}))
    tracker._ask(float("inf"), "flush")
    assert tracker._active and len(waits) == 20 and set(waits) == {BackgroundTracker.answer_seconds}


def test_a_stopped_process_takes_what_is_sent_and_is_killed(caplog, tmp_path):
    worker = WorkerProcess(f"sqlite:///{tmp_path}/mlflow.db")
    pid = worker._process.pid
    os.kill(pid, signal.SIGSTOP)
    tracker = BackgroundTracker(worker)
    tracker.answer_seconds = tracker.stop_seconds = tracker.end_seconds = 0.05
    tracker.start({}, tmp_path, None, False)
    for _ in range(20):  # far more than a pipe holds
        tracker.log_history([(step, {"loss": 0.5}) for step in range(10_000)])
    tracker.finish("finished")
    assert not tracker.active and "no answer for" in caplog.text
    tracker.close()
    assert not alive(pid)


def test_a_thread_that_is_stuck_is_left_behind_and_does_nothing_more(monkeypatch, tmp_path):
    stuck, go_on, calls = threading.Event(), threading.Event(), []

    class Stuck:
        active, run_id, experiment = True, "id", "1"

        def __init__(self, *arguments, **keywords):
            pass

        def start(self, *arguments):
            stuck.set()
            go_on.wait()

        def log_history(self, rows):
            calls.append(rows)

    monkeypatch.setattr(tracking_worker, "MlflowTracker", Stuck)
    worker = WorkerThread(f"sqlite:///{tmp_path}/mlflow.db")
    tracker = BackgroundTracker(worker)
    tracker.end_seconds = 0.01
    tracker.start({}, tmp_path, None, False)
    tracker.log_history([])
    stuck.wait()
    tracker.close()
    go_on.set()  # the store is there again, when another process may already send the rest
    worker._thread.join()
    assert calls == []


def test_an_error_in_the_thread_ends_the_wait_for_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(tracking_worker, "MlflowTracker", None)
    tracker = BackgroundTracker(WorkerThread(f"sqlite:///{tmp_path}/mlflow.db"))
    tracker.start({}, tmp_path, None, False)
    tracker.flush()
    assert not tracker.active and "its process has ended" in caplog.text


def test_within():
    assert within(60, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(60, lambda: {}["a"])
    with pytest.raises(TimeoutError, match=r"no answer for 0\.01 s"):
        within(0.01, threading.Event().wait)
    with pytest.raises(TimeoutError, match="its own"):
        within(60, raise_timeout)


def raise_timeout() -> None:
    raise TimeoutError("its own")


def test_parents_of_a_sweep_do_not_wait_for_a_stalled_store(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(parent_runs, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(parent_runs, "_write_all", lambda *arguments: threading.Event().wait())
    assert parent_runs.write_parents("study", [], f"sqlite:///{tmp_path}/mlflow.db") == 1
    assert "could not be written (no answer for 0.01 s)" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["_prepare", "_write_run"])
def test_an_import_does_not_wait_for_a_stalled_store(monkeypatch, tmp_path, step):
    monkeypatch.setattr(legacy_import, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(mlflow_store, "create_database", lambda path: None)
    monkeypatch.setattr(legacy_import, "_prepare", lambda runs, uri: (None, {"e": "1"}, set()))
    monkeypatch.setattr(legacy_import, step, lambda *arguments: threading.Event().wait())
    run = OldRun("1", "e", "r", "FINISHED", 0, None, {}, {}, {}, None)
    with pytest.raises(UserError, match=r"no answer for 0\.01 s"):
        legacy_import.write([run], f"sqlite:///{tmp_path}/mlflow.db")


def test_several_threads_are_silent_together():
    logging.getLogger("mlflow").setLevel(logging.INFO)
    first, second = mlflow_store.quiet(), mlflow_store.quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not logging.getLogger("mlflow.store").isEnabledFor(logging.CRITICAL)
    second.__exit__(None, None, None)
    assert logging.getLogger("mlflow").level == logging.INFO
