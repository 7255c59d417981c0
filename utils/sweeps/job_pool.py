"""Job pools: functions that are executed in processes of their own, here or on a cluster.

A `Job` is a function's name and plain arguments; its result is the exit code of its process. `JobPool` holds
what all pools share: the queue, the running jobs and how they are stopped. `process_pool.py` runs jobs on
this machine, `ray_pool.py` on a Ray cluster, `slurm_pool.py` under Slurm.
"""

import math
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class Job:
    """What to execute: `target` is "module:function", which is called with `arguments` in the folder `cwd`.

    `output` is the file that stdout and stderr are appended to; with None they stay the caller's. The return
    value of the function is the exit code.
    """

    name: str
    target: str
    arguments: tuple[object, ...]
    output: str | None = None
    gpu: bool = False
    cwd: str = field(default_factory=os.getcwd)


@dataclass(frozen=True)
class JobExit:
    """How a job ended: its exit code, negative for the signal that killed it."""

    job: Job
    code: int


class JobPool(ABC, Generic[Handle]):
    """Jobs at work and jobs that wait; a subclass starts jobs and says which of them have ended.

    `Handle` is what the subclass knows a started job by: a process, a reference, a job id.
    """

    stop_seconds = math.inf  # that interrupted jobs have to save their state

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.running: dict[Handle, Job] = {}

    @abstractmethod
    def has_room(self) -> bool:
        """Whether one more job can be started now."""

    @abstractmethod
    def start(self, job: Job) -> Handle:
        """Start a job and return at once."""

    @abstractmethod
    def ended(self, timeout: float) -> dict[Handle, int]:
        """Exit codes of the running jobs that have ended; waits for the first at most `timeout` seconds."""

    @abstractmethod
    def interrupt(self, handle: Handle) -> None:
        """Ask a running job to save its state and end. Called once: a second signal ends it unsaved."""

    @abstractmethod
    def kill_job(self, handle: Handle) -> None:
        """End a running job at once."""

    def submit(self, job: Job) -> None:
        """Queue a job; it starts as soon as there is room."""
        self.waiting.append(job)
        self._start_waiting()

    def n_running(self) -> int:
        """Number of jobs that were started and have not been returned by `finished`."""
        return len(self.running)

    def finished(self, timeout: float) -> list[JobExit]:
        """Jobs that ended since the last call; waits for one, at most `timeout` seconds."""
        self._start_waiting()
        exits = [JobExit(self.running.pop(handle), code) for handle, code in self.ended(timeout).items()]
        self._start_waiting()
        return exits

    def stop(self) -> list[JobExit]:
        """Drop waiting jobs, interrupt the running ones and return how those ended in `stop_seconds`."""
        self.waiting.clear()
        for handle in self.running:
            self.interrupt(handle)
        exits, deadline = [], time.monotonic() + self.stop_seconds
        while self.running and time.monotonic() < deadline:
            exits += self.finished(timeout=1.0)
        return exits

    def kill(self) -> None:
        """Drop waiting jobs and end the running ones at once."""
        self.waiting.clear()
        for handle in self.running:
            self.kill_job(handle)

    def _start_waiting(self) -> None:
        while self.waiting and self.has_room():
            job = self.waiting.popleft()
            self.running[self.start(job)] = job


def run_jobs(
    pool: JobPool[Handle],
    jobs: list[Job],
    retries: int,
    is_final: Callable[[JobExit], bool] = lambda job_exit: False,
) -> Iterator[tuple[JobExit, int]]:
    """Run all jobs; yields every exit with the number of tries that are left for that job.

    A job that fails is tried again, `retries` times, unless its exit code is 2 (bad input stays bad) or
    `is_final` says of how it ended that another try would end so, too.
    """
    tries_left = {job.name: retries for job in jobs}
    for job in jobs:
        pool.submit(job)
    n_open = len(jobs)
    while n_open:
        for job_exit in pool.finished(timeout=1.0):
            name = job_exit.job.name
            if job_exit.code in (0, 2) or is_final(job_exit):
                tries_left[name] = 0
            yield job_exit, tries_left[name]
            if tries_left[name]:
                tries_left[name] -= 1
                pool.submit(job_exit.job)
            else:
                n_open -= 1
