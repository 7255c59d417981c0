"""The jobs of a memorization study in this process and in worker processes: all done, failures told."""

import os
import queue
from types import SimpleNamespace

import pytest
import torch

from engram.memorization import worker_pool
from engram.memorization.settings import MachineOptions
from engram.memorization.worker_pool import (
    NetworkProgress,
    Ready,
    WorkerDevice,
    job_members,
    jobs_of,
    run_jobs,
    worker_devices,
)
from engram.utils.errors import UserError
from tests.unit.plans import FilePlan
from tests.waiting import TickingClock

TWO = [WorkerDevice("cpu", 1), WorkerDevice("cpu", 1)]


def test_networks_are_cut_into_jobs():
    assert [job_members(job, 3, 7) for job in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert jobs_of([6, 1, 0], 3) == [0, 2]


def test_as_many_workers_as_asked_for_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpu = MachineOptions(device="cpu", use_multiprocessing=True, num_workers=3)
    assert worker_devices(cpu, "cnn") == [WorkerDevice("cpu", 2)] * 3
    alone = MachineOptions(device="cpu", use_multiprocessing=False)
    assert worker_devices(alone, "cnn") == [WorkerDevice("cpu", 8)]
    assert worker_devices(alone, "mlp") == [WorkerDevice("cpu", 1)], "threads slow small products down"
    assert worker_devices(MachineOptions(device="cpu"), "mlp") == [WorkerDevice("cpu", 1)] * 8
    for flags in ({"use_multiprocessing": False}, {"use_multiprocessing": True, "num_workers": 3}):
        asked = worker_devices(MachineOptions(device="cpu", num_threads=5, **flags), "cnn")
        assert {worker.n_threads for worker in asked} == {5}


@pytest.mark.parametrize(
    ("given", "alone", "each"),
    [("3", 3, 2), ("1", 1, 1), ("64", 8, 2), ("6,2", 6, 2), ("0", 8, 2), ("x", 8, 2)],
)
def test_the_environment_may_ask_for_fewer_threads(given, alone, each, monkeypatch):
    """OMP_NUM_THREADS is a bound of what a process takes, not of what --num_threads asks for."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    one, three = ({"use_multiprocessing": False}, {"use_multiprocessing": True, "num_workers": 3})
    for flags, expected in ((one, alone), (three, each), ({**one, "num_threads": 7}, 7)):
        workers = worker_devices(MachineOptions(device="cpu", **flags), "cnn")
        assert {worker.n_threads for worker in workers} == {expected}


@pytest.mark.parametrize("workers", [TWO[:1], TWO], ids=["here", "two processes"])
def test_all_jobs_are_done_and_reported(workers, tmp_path):
    n_threads, progress = torch.get_num_threads(), NetworkProgress("test", 12, done=2)
    try:
        run_jobs(FilePlan(str(tmp_path)), [1, 2, 3, 5, 8], workers, progress)
    finally:
        torch.set_num_threads(n_threads)
    assert {path.name for path in tmp_path.iterdir()} == set("12358")
    assert progress.done == 12
    ids, threads = zip(*(path.read_text().split() for path in tmp_path.iterdir()), strict=True)
    assert set(threads) == {"1"} and (str(os.getpid()) in ids) == (len(workers) == 1)


@pytest.mark.parametrize("workers", [TWO[:1], TWO], ids=["here", "two processes"])
def test_the_time_in_which_workers_load_their_data_is_in_no_rate(workers, tmp_path, monkeypatch):
    """Loading takes an hour of this clock, a report of half a network half an hour."""
    clock = TickingClock(step=0)
    monkeypatch.setattr(worker_pool, "time", SimpleNamespace(monotonic=clock))

    class Watched(NetworkProgress):
        def __enter__(self):
            clock.spend(3600)
            return super().__enter__()

        def advance(self, networks):
            clock.spend(1800)
            super().advance(networks)
            rates.append(self.per_hour)

    rates, n_threads = [], torch.get_num_threads()
    try:
        run_jobs(FilePlan(str(tmp_path)), [1], workers, Watched("test", 2))
    finally:
        torch.set_num_threads(n_threads)
    assert rates == [1.0] * 4


def test_no_network_trained_is_no_sign_that_a_worker_is_ready():
    class Begun(NetworkProgress):
        def begin(self):
            said.append("ready")

        def advance(self, networks):
            said.append(networks)

    said, messages = [], queue.Queue()
    for message in (0.0, Ready.READY, 1.0, None):
        messages.put(message)
    worker_pool._follow(SimpleNamespace(n_running=lambda: 1), messages, Begun("test", 1))
    assert said == [0.0, "ready", 1.0]


def test_an_error_of_the_users_reaches_the_caller_as_it_is(tmp_path):
    with pytest.raises(UserError, match=r"^job 3 cannot be done$"):
        run_jobs(FilePlan(str(tmp_path), refused=3), [1, 2, 3], TWO, NetworkProgress("test", 6))


def test_a_worker_that_is_killed_is_told(tmp_path):
    with pytest.raises(UserError, match=r"a worker process ended with code -9; what it had finished is kept"):
        run_jobs(FilePlan(str(tmp_path), killed=2), [2, 2], TWO, NetworkProgress("test", 4))
