"""Runner: jobs in processes of their own on this machine.

A job is a function's name and plain arguments; its result is the exit code. Importing torch and MLflow
takes longer than a small run, so one server process imports them once and every job is a fork of it:
nothing a job leaves behind reaches the next one, and its crash harms no other. The server never touches
CUDA, which does not survive a fork. `utils/sweeps/ray_pool.py` does the same on many machines.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, Protocol

from engram.utils.processes import child_process_environment

CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Job:
    """What to do: `target` is "module:function", `output` the file that takes what it prints.

    `folder` is the one to work in; relative paths among the arguments are meant from there.
    """

    name: str
    target: str
    arguments: tuple[Any, ...]
    output: str
    gpu: bool = False
    folder: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class JobExit:
    """How a job ended: its exit code, negative for the signal that ended it."""

    job: Job
    code: int


class Runner(Protocol):
    """Where jobs are done."""

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def finished(self, timeout: float) -> list[JobExit]:
        """Jobs that ended since the last call; waits for one, at most so many seconds."""

    def n_running(self) -> int:
        """Jobs at work at this moment."""

    def stop(self) -> None:
        """Ask every job to save and end; waits for them. Queued ones are dropped."""

    def kill(self) -> None:
        """End every job at once."""


class LocalRunner:
    """As many jobs at a time as there are places; a place is a GPU's number or None for the CPU."""

    def __init__(self, places: list[str | None]):
        self._free = deque(places)
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, tuple[Job, str | None]] = {}

    def submit(self, job: Job) -> None:
        """Queue a job; it starts when there is a place."""
        self._waiting.append(job)
        self._fill()

    def n_running(self) -> int:
        """Processes alive."""
        return len(self._running)

    def finished(self, timeout: float) -> list[JobExit]:
        """Jobs that ended; their places are taken by the next ones."""
        self._fill()
        sentinels = [process.sentinel for process in self._running]
        if sentinels:
            connection.wait(sentinels, timeout)
        ended = [process for process in self._running if process.exitcode is not None]
        outcomes = []
        for process in ended:
            job, place = self._running.pop(process)
            outcomes.append(JobExit(job, process.exitcode))
            self._free.append(place)
            process.close()
        self._fill()
        return outcomes

    def stop(self) -> None:
        """SIGTERM, once: a second one would end a run before its checkpoint."""
        self._waiting.clear()
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.join()

    def kill(self) -> None:
        """SIGKILL."""
        self._waiting.clear()
        for process in self._running:
            process.kill()

    def _fill(self) -> None:
        while self._waiting and self._free:
            job, place = self._waiting.popleft(), self._free.popleft()
            self._running[start_process(job, place if job.gpu else None)] = job, place


def start_process(job: Job, gpu: str | None) -> Any:
    """The process that does the job."""
    process = CONTEXT.Process(target=_work, args=(job, gpu), name=job.name)
    with child_process_environment():  # which starts here if nobody started it, or if it was lost
        process.start()
    return process


def start_server(preload: list[str]) -> None:
    """Start the process that jobs are forked from; it imports `preload` while the caller goes on."""
    CONTEXT.set_forkserver_preload([__name__, *preload])
    with child_process_environment():
        forkserver.ensure_running()


def _work(job: Job, gpu: str | None) -> None:
    os.setsid()  # the terminal's Ctrl-C goes to the sweep, which asks each job once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(job.folder)
    Path(job.output).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    module, function = job.target.split(":")
    sys.exit(getattr(importlib.import_module(module), function)(*job.arguments))


def _end_with_parent() -> None:
    """Save and end when the process that started this one is gone, even if it was killed."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def work_off(runner: Runner, jobs: list[Job], retries: int) -> Iterator[tuple[JobExit, int]]:
    """Do all jobs; yields each ending with the number of tries left for that job.

    A job that fails is tried again, `retries` times, unless its exit code is 2: bad input stays bad.
    """
    left = {job.name: retries for job in jobs}
    for job in jobs:
        runner.submit(job)
    n_open = len(jobs)
    while n_open:
        for outcome in runner.finished(timeout=1.0):
            name = outcome.job.name
            if outcome.code in (0, 2):
                left[name] = 0
            yield outcome, left[name]
            if left[name]:
                left[name] -= 1
                runner.submit(outcome.job)
            else:
                n_open -= 1


def places(jobs: int | None, runs_per_gpu: int) -> list[str | None]:
    """A place for each process: every GPU several times, or the CPU's cores."""
    gpus = visible_gpus()
    if gpus:
        found: list[str | None] = [gpu for _ in range(runs_per_gpu) for gpu in gpus]
        return [found[i % len(found)] for i in range(jobs)] if jobs else found
    return [None] * (jobs or len(os.sched_getaffinity(0)))


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one by one."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:n] if named and n else [str(i) for i in range(n)]
