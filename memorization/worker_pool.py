"""Worker pool: the jobs of a study, done in this process or by one process for each GPU or CPU core.

Worker processes are jobs of `utils/sweeps/process_pool.py`. Each loads the study's examples once and then
takes job after job from a queue; the parent shows the progress of all. Results are files, which jobs write.
"""

import os
import queue
import sys
import time
from collections.abc import Callable, Iterable
from enum import Enum, auto
from multiprocessing.queues import Queue
from typing import NamedTuple, Protocol

import torch
from tqdm import tqdm

from engram.memorization.settings import MachineOptions
from engram.utils import device as devices
from engram.utils.errors import UserError
from engram.utils.processes import threads_at_most
from engram.utils.sweeps import process_pool
from engram.utils.sweeps.job_pool import Job
from engram.utils.sweeps.process_pool import ProcessPool

LINES_EVERY = 10.0  # seconds between lines where there is no terminal
LOOK_EVERY = 1.0  # seconds between looks at whether a silent process is still alive
REFUSED = 2  # exit code of a worker that has sent an error of the user's
Report = Callable[[float], None]  # tells how many more networks have been trained, or parts of one
JobFunction = Callable[[int, Report], None]


class Ready(Enum):
    """A worker's first message: it has loaded what its jobs need."""

    READY = auto()


# Of a worker: that it is ready, networks trained, an error of the user's, or the worker's end.
Message = Ready | float | str | None


class Plan(Protocol):
    """A study divided into numbered jobs; plans are sent to other processes, so they hold plain values."""

    def prepare(self, device: torch.device) -> JobFunction:
        """Load what all jobs need; returns the function that does one job and reports its progress."""


class WorkerDevice(NamedTuple):
    """What one worker process computes on."""

    device: str
    n_threads: int


def worker_devices(machine: MachineOptions, backbone: str) -> list[WorkerDevice]:
    """The device and CPU threads of each worker process; a single one means this process."""
    first = devices.choose(machine.device)
    n_cores = len(os.sched_getaffinity(0))
    if first.type == "cuda":
        several = machine.device in ("auto", "cuda") and torch.cuda.device_count() > 1
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if several else [str(first)]
    else:
        names = ["cpu"] * n_cores
    wanted = len(names) > 1 if machine.use_multiprocessing is None else machine.use_multiprocessing
    if not wanted:
        n_threads = machine.num_threads or (1 if backbone == "mlp" else threads_at_most())
        return [WorkerDevice(str(first), n_threads)]
    n = machine.num_workers or len(names)
    n_threads = machine.num_threads or max(1, min(n_cores // n, threads_at_most()))
    return [WorkerDevice(names[i % len(names)], n_threads) for i in range(n)]


def job_members(job: int, size: int, n: int) -> list[int]:
    """The items of a job where `n` items are cut into jobs of `size` neighbours."""
    return list(range(job * size, min((job + 1) * size, n)))


def whole_job(job: int, size: int) -> range:
    """The items of a job of `size` neighbours, however many items there are now."""
    return range(job * size, (job + 1) * size)


def jobs_of(items: Iterable[int], size: int) -> list[int]:
    """The jobs of `size` neighbours that any of the items belongs to, ascending."""
    return sorted({item // size for item in items})


def run_jobs(plan: Plan, jobs: list[int], workers: list[WorkerDevice], progress: "NetworkProgress") -> None:
    """Do all jobs; raises `UserError` when one of them fails."""
    workers = workers[: max(1, len(jobs))]
    with progress:
        if len(workers) > 1:
            _run_in_processes(plan, jobs, workers, progress)
            return
        torch.set_num_threads(workers[0].n_threads)
        run_job = plan.prepare(torch.device(workers[0].device))
        progress.begin()
        for job in jobs:
            run_job(job, progress.advance)


def _run_in_processes(
    plan: Plan, jobs: list[int], workers: list[WorkerDevice], progress: "NetworkProgress"
) -> None:
    waiting: Queue[int | None] = process_pool.CONTEXT.Queue()
    messages: Queue[Message] = process_pool.CONTEXT.Queue()
    for job in [*jobs, *([None] * len(workers))]:  # each worker ends at a None
        waiting.put(job)
    process_pool.start_server([__name__])
    pool = ProcessPool([None] * len(workers))
    try:
        for i, worker in enumerate(workers):
            arguments = (plan, worker, waiting, messages)
            pool.submit(Job(f"worker {i}", f"{__name__}:run_worker", arguments))
        _follow(pool, messages, progress)
    finally:
        pool.kill()
        while pool.n_running():  # none is left writing files when this function returns
            pool.finished(timeout=LOOK_EVERY)


def _follow(pool: ProcessPool, messages: "Queue[Message]", progress: "NetworkProgress") -> None:
    """Show the progress of all workers until the last has ended; raises `UserError` when one fails."""
    n_open = pool.n_running()
    while n_open:
        try:
            message = messages.get(timeout=LOOK_EVERY)
        except queue.Empty:
            for job_exit in pool.finished(timeout=0):
                if job_exit.code not in (0, REFUSED):  # what was refused is told by a message on its way
                    raise UserError(
                        f"a worker process ended with code {job_exit.code}; what it had finished is kept: "
                        "run again"
                    ) from None
            continue
        if isinstance(message, str):
            raise UserError(message)
        if message is None:
            n_open -= 1
        elif message is Ready.READY:
            progress.begin()
        else:
            progress.advance(message)


def run_worker(
    plan: Plan, worker: WorkerDevice, waiting: "Queue[int | None]", messages: "Queue[Message]"
) -> int:
    """A worker process: jobs from the queue until there are none; returns its exit code."""
    torch.set_num_threads(worker.n_threads)
    try:
        run_job = plan.prepare(torch.device(worker.device))
        messages.put(Ready.READY)
        while (job := waiting.get()) is not None:
            run_job(job, messages.put)
    except UserError as error:
        messages.put(str(error))
        return REFUSED
    messages.put(None)
    return 0


class NetworkProgress:
    """Networks finished of all, networks per hour, time left: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, total: int, done: int = 0):
        self.title, self.total, self.done = title, total, float(done)
        self._bar = tqdm(
            total=total, initial=done, desc=title, unit="network", dynamic_ncols=True, smoothing=0,
            disable=not sys.stderr.isatty(),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total}{postfix}, {remaining} left",
        )  # fmt: skip
        self._started = self._last_line = time.monotonic()
        self._done_here, self._has_begun = 0.0, False

    def begin(self) -> None:
        """The first of several workers is ready: rates do not count the imports and the data read before."""
        if not self._has_begun:
            self._has_begun, self._started = True, time.monotonic()
            self._bar.unpause()  # its clock starts anew too

    @property
    def per_hour(self) -> float:
        """Networks per hour since `begin`, or since this object was made; parts of networks included."""
        return 3600 * self._done_here / max(time.monotonic() - self._started, 1e-9)

    def advance(self, networks: float) -> None:
        """Count networks (or parts of one) that have been trained."""
        self.done += networks
        self._done_here += networks
        self._bar.set_postfix_str(f"{self.per_hour:,.0f}/h", refresh=False)
        self._bar.update(networks)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > LINES_EVERY:
            self._last_line = now
            left = (self.total - self.done) / max(self.per_hour, 1e-9) * 3600
            self._print(f"{self.done:.1f}/{self.total} networks, {self.per_hour:,.0f}/h, {left:.0f} s left")

    def _print(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def __enter__(self) -> "NetworkProgress":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._bar.close()
        if self._bar.disable and kind is None:
            self._print(f"{self.done:.0f}/{self.total} networks, {self.per_hour:,.0f}/h")
