"""Several runs in one process, each in a thread and on a CUDA stream of its own, a step at a time.

Processes that share a GPU have it one after the other; here the steps of several runs are queued on streams
side by side, so that what one leaves idle another takes (`--seeds_together` of scripts/sweep.py). Only the
run whose turn it is executes Python: what a process has once, such as thread counts, a forked generator or
standard output, changes hands between two steps. So each run computes what it does alone, on a CPU bit for
bit (tests/integration/test_interleaved.py).
"""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch

from engram.utils import device as devices
from engram.utils.errors import UserError
from engram.utils.training.signals import SignalHandler


class InterleavedJob(NamedTuple):
    """What one thread does: `work` returns an exit code, what it prints goes to the file `output`."""

    work: Callable[[], int]
    output: str
    device: str


class InterleavedRuns:
    """The queue of waiting threads and their signal handler. Only the thread whose turn it is may act."""

    def __init__(self, n: int):
        self.n, self.signals = n, SignalHandler()
        self.waiting = deque(threading.Semaphore(0) for _ in range(n))

    def release_next(self) -> None:
        """Let the thread that has waited longest go on."""
        if self.waiting:
            self.waiting.popleft().release()

    def yield_turn(self) -> None:
        """Wait until every other thread has had its turn."""
        if not self.waiting:
            return
        semaphore, printing_to = threading.Semaphore(0), (sys.stdout, sys.stderr)
        self.waiting.append(semaphore)
        self.release_next()
        semaphore.acquire()
        sys.stdout, sys.stderr = printing_to


_current: InterleavedRuns | None = None  # of this process


def n_runs() -> int:
    """The number of runs that share this process; 1 where a run has it for itself."""
    return _current.n if _current else 1


def yield_turn() -> None:
    """Let the other runs of this process take a step; does nothing where there are none."""
    if _current:
        _current.yield_turn()


def handle_signals() -> AbstractContextManager[SignalHandler]:
    """A signal handler of the run's own, or the one that all runs of the process share."""
    return nullcontext(_current.signals) if _current else SignalHandler()


def run_interleaved(jobs: list[InterleavedJob]) -> int:
    """Execute all jobs, their steps in turn; returns 1 where one failed, else the largest exit code."""
    global _current
    runs = _current = InterleavedRuns(len(jobs))
    codes, printing_to = [1] * len(jobs), (sys.stdout, sys.stderr)

    def execute_in_turn(i: int, job: InterleavedJob, semaphore: threading.Semaphore) -> None:
        semaphore.acquire()
        sys.stdout, sys.stderr = printing_to
        try:
            codes[i] = execute(job)
        finally:
            runs.release_next()

    arguments = zip(range(len(jobs)), jobs, list(runs.waiting), strict=True)
    threads = [
        threading.Thread(target=execute_in_turn, args=args, name=f"run {args[0]}") for args in arguments
    ]
    try:
        with runs.signals:
            for thread in threads:
                thread.start()
            runs.release_next()
            for thread in threads:
                thread.join()
    finally:
        _current = None
        sys.stdout, sys.stderr = printing_to
    return 1 if 1 in codes else max(codes)


def execute(job: InterleavedJob) -> int:
    """The exit code of a job; an exception is printed where the job prints, and is its failure alone."""
    Path(job.output).parent.mkdir(parents=True, exist_ok=True)
    with open(job.output, "a", encoding="utf-8", buffering=1) as file:
        with redirect_stdout(file), redirect_stderr(file), cuda_stream(job.device):
            try:
                return job.work()
            except Exception:
                traceback.print_exc()
                return 1


def cuda_stream(name: str) -> AbstractContextManager[object]:
    """On CUDA, what is queued inside does not wait for what other threads queue; elsewhere nothing."""
    try:
        device = devices.choose(name)
    except UserError:  # which the run itself will say
        return nullcontext()
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))
