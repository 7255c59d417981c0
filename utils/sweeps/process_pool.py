"""Process pool: jobs in processes of this machine, at most one for each slot.

Importing torch and MLflow takes longer than a small run, so one fork server imports them once and every job
is a fork of it: nothing a job leaves behind reaches the next one, and its crash harms no other. The server
never touches CUDA, which does not survive a fork.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from engram.utils.processes import child_process_environment
from engram.utils.sweeps.job_pool import Job, JobPool

CONTEXT = multiprocessing.get_context("forkserver")


class ProcessPool(JobPool[ForkServerProcess]):
    """As many jobs at a time as there are slots; a slot is a GPU's name for CUDA, or None for the CPU."""

    def __init__(self, slots: list[str | None]):
        super().__init__()
        self.free_slots = deque(slots)
        self.slot_of: dict[ForkServerProcess, str | None] = {}

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self.free_slots)

    def start(self, job: Job) -> ForkServerProcess:
        """Start the job's process in the slot that has been free for longest."""
        slot = self.free_slots.popleft()
        process = start_process(job, slot if job.gpu else None)
        self.slot_of[process] = slot
        return process

    def ended(self, timeout: float) -> dict[ForkServerProcess, int]:
        """Exit codes of the processes that have ended, whose slots become free."""
        if self.running:
            connection.wait([process.sentinel for process in self.running], timeout)
        codes = {process: process.exitcode for process in self.running if process.exitcode is not None}
        for process in codes:
            self.free_slots.append(self.slot_of.pop(process))
            process.close()
        return codes

    def interrupt(self, handle: ForkServerProcess) -> None:
        """Ask the job to end: send SIGTERM."""
        handle.terminate()

    def kill_job(self, handle: ForkServerProcess) -> None:
        """End the job at once: send SIGKILL."""
        handle.kill()


def start_process(job: Job, gpu: str | None) -> ForkServerProcess:
    """Start a process that executes the job and sees, when `gpu` is given, that GPU alone."""
    process = CONTEXT.Process(target=_execute, args=(job, gpu), name=job.name)
    with child_process_environment():  # the fork server starts here unless it is alive already
        process.start()
    return process


def start_server(preload: list[str]) -> None:
    """Start the fork server; it imports the modules `preload` while the caller goes on."""
    CONTEXT.set_forkserver_preload([__name__, *preload])
    with child_process_environment():
        forkserver.ensure_running()


def _execute(job: Job, gpu: str | None) -> None:
    os.setsid()  # the terminal's Ctrl-C goes to the sweep, which asks each job once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(job.cwd)
    if job.output is not None:
        _redirect_output(Path(job.output))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    module, function = job.target.split(":")
    sys.exit(getattr(importlib.import_module(module), function)(*job.arguments))


def _redirect_output(path: Path) -> None:
    """Append what this process and its children print to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _end_with_parent() -> None:
    """Save and end when the process that started this one is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that was started by another one calls this"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def default_slots(jobs: int | None, runs_per_gpu: int) -> list[str | None]:
    """One slot for each of `jobs` processes: every GPU `runs_per_gpu` times, or else the CPU's cores."""
    gpus = visible_gpus()
    if gpus:
        slots: list[str | None] = [gpu for _ in range(runs_per_gpu) for gpu in gpus]
        return [slots[i % len(slots)] for i in range(jobs)] if jobs else slots
    return [None] * (jobs or len(os.sched_getaffinity(0)))


def visible_gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES can refer to the GPUs that this process may use."""
    import torch  # here: `--dry_run` and `--help` of a sweep start without it

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    n = torch.cuda.device_count()
    return [name.strip() for name in names.split(",")][:n] if names and n else [str(i) for i in range(n)]
