"""Turns: several runs in one process, each in a thread and on a CUDA stream of its own, a step at a time.

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
from engram.utils.training.signals import Interrupt


class InterleavedJob(NamedTuple):
    """What one thread does: `work` returns an exit code, what it prints goes to the file `output`."""

    work: Callable[[], int]
    output: str
    device: str


class InterleavedRuns:
    """The line of those who wait, and a signal for all. Only who has the turn changes anything here."""

    def __init__(self, n: int):
        self.n, self.interrupt = n, Interrupt()
        self.line = deque(threading.Semaphore(0) for _ in range(n))

    def leave(self) -> None:
        """Let the next one go on."""
        if self.line:
            self.line.popleft().release()

    def yield_turn(self) -> None:
        """Let the others have their turns first."""
        if not self.line:
            return
        gate, printing_to = threading.Semaphore(0), (sys.stdout, sys.stderr)
        self.line.append(gate)
        self.leave()
        gate.acquire()
        sys.stdout, sys.stderr = printing_to


_current: InterleavedRuns | None = None  # of this process


def n_runs() -> int:
    """Runs that this process was given."""
    return _current.n if _current else 1


def yield_turn() -> None:
    """Called between steps; nothing where a run has its process for itself."""
    if _current:
        _current.yield_turn()


def interrupts() -> AbstractContextManager:
    """An `Interrupt` of the run's own, or the one that all runs of the process share."""
    return nullcontext(_current.interrupt) if _current else Interrupt()


def run_interleaved(parts: list[InterleavedJob]) -> int:
    """Do all parts, their steps in turn; 1 where one failed, otherwise the largest of the exit codes."""
    global _current
    turns = _current = InterleavedRuns(len(parts))
    codes, printing_to = [1] * len(parts), (sys.stdout, sys.stderr)

    def do(i: int, part: InterleavedJob, gate: threading.Semaphore) -> None:
        gate.acquire()
        sys.stdout, sys.stderr = printing_to
        try:
            codes[i] = carried_out(part)
        finally:
            turns.leave()

    each = zip(range(len(parts)), parts, list(turns.line), strict=True)
    threads = [threading.Thread(target=do, args=args, name=f"run {args[0]}") for args in each]
    try:
        with turns.interrupt:
            for thread in threads:
                thread.start()
            turns.leave()
            for thread in threads:
                thread.join()
    finally:
        _current = None
        sys.stdout, sys.stderr = printing_to
    return 1 if 1 in codes else max(codes)


def carried_out(part: InterleavedJob) -> int:
    """The exit code of a part; what it raises is printed where it prints, and is its failure alone."""
    Path(part.output).parent.mkdir(parents=True, exist_ok=True)
    with open(part.output, "a", encoding="utf-8", buffering=1) as file:
        with redirect_stdout(file), redirect_stderr(file), own_stream(part.device):
            try:
                return part.work()
            except Exception:
                traceback.print_exc()
                return 1


def own_stream(device: str) -> AbstractContextManager:
    """On CUDA, what is done inside does not wait for what others do."""
    try:
        where = devices.choose(device)
    except UserError:  # which the run itself will say
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(where)) if where.type == "cuda" else nullcontext()
