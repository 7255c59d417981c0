"""Fleet: the jobs of a study, done in this process or by one process for each GPU or CPU core; one bar."""

import multiprocessing
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from tqdm import tqdm

from engram.memorization.settings import MachineOptions
from engram.utils import device as devices
from engram.utils.errors import UserError

LINES_EVERY = 10.0  # seconds between lines where there is no terminal
LOOK_EVERY = 1.0  # seconds between looks at whether a silent process is still there
Report = Callable[[float], None]


class Plan(Protocol):
    """A study divided into jobs; plans travel to other processes, so they hold plain values."""

    def prepare(self, device: torch.device) -> Callable[[int, Report], None]:
        """Load what all jobs need; returns the function that does one job, telling networks finished."""


def places(machine: MachineOptions, backbone: str) -> list[tuple[str, int]]:
    """(device, CPU threads) for each process; a single one means this process."""
    first = devices.choose(machine.device)
    cores = len(os.sched_getaffinity(0))
    if first.type == "cuda":
        several = machine.device in ("auto", "cuda") and torch.cuda.device_count() > 1
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if several else [str(first)]
    else:
        names = ["cpu"] * cores
    wanted = len(names) > 1 if machine.use_multiprocessing is None else machine.use_multiprocessing
    if not wanted:
        return [(str(first), 1 if backbone == "mlp" else cores)]
    n = machine.num_workers or len(names)
    return [(names[i % len(names)], max(1, cores // n)) for i in range(n)]


def run(plan: Plan, jobs: list[int], where: list[tuple[str, int]], bar: "Bar") -> None:
    """Do all jobs; raises what a job raised. Results are the jobs' own business (files)."""
    where = where[: max(1, len(jobs))]
    with bar:
        if len(where) == 1:
            _work_here(plan, jobs, *where[0], bar)
        else:
            _work_beside(plan, jobs, where, bar)


def _work_here(plan: Plan, jobs: list[int], device: str, threads: int, bar: "Bar") -> None:
    torch.set_num_threads(threads)
    work = plan.prepare(torch.device(device))
    for job in jobs:
        work(job, bar.advance)


def _work_beside(plan: Plan, jobs: list[int], where: list[tuple[str, int]], bar: "Bar") -> None:
    context = multiprocessing.get_context("spawn")
    waiting, reports = context.Queue(), context.Queue()
    for job in [*jobs, *([None] * len(where))]:
        waiting.put(job)
    workers = [
        context.Process(target=_worker, args=(plan, *place, waiting, reports), daemon=True) for place in where
    ]
    for worker in workers:
        worker.start()
    try:
        left = len(workers)
        while left:
            try:
                kind, content = reports.get(timeout=LOOK_EVERY)
            except queue.Empty:
                _check_alive(workers)
                continue
            if kind == "error":
                raise UserError(content)
            if kind == "networks":
                bar.advance(content)
            left -= kind == "end"
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _check_alive(workers: list[Any]) -> None:
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if codes:
        raise UserError(
            f"a worker process ended with code {codes[0]}; what it had finished is kept: run again"
        )


def _worker(plan: Plan, device: str, threads: int, waiting: Any, reports: Any) -> None:
    """The life of one process: jobs until there are none, or until the parent has gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def report(networks: float) -> None:
        reports.put(("networks", networks))

    try:
        work = plan.prepare(torch.device(device))
        while (job := waiting.get()) is not None:
            work(job, report)
    except UserError as error:
        reports.put(("error", str(error)))
        return
    reports.put(("end", None))


def _end_with_parent() -> None:
    """A parent that was killed could not stop its processes; what they write is atomic, so they just go."""
    multiprocessing.parent_process().join()
    os._exit(1)


class Bar:
    """Networks finished of all, networks per hour, time left: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done = what, total, float(done)
        self._bar = tqdm(
            total=total, initial=done, desc=what, unit="network", dynamic_ncols=True, smoothing=0,
            disable=not sys.stderr.isatty(),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total}{postfix}, {remaining} left",
        )  # fmt: skip
        self._started = self._told = time.monotonic()
        self._fresh = 0.0

    @property
    def per_hour(self) -> float:
        """Networks per hour in this process's lifetime, finished or not."""
        return 3600 * self._fresh / max(time.monotonic() - self._started, 1e-9)

    def advance(self, networks: float) -> None:
        """So many networks (or parts of one) have been trained."""
        self.done += networks
        self._fresh += networks
        self._bar.set_postfix_str(f"{self.per_hour:,.0f}/h", refresh=False)
        self._bar.update(networks)
        now = time.monotonic()
        if self._bar.disable and now - self._told > LINES_EVERY:
            self._told = now
            left = (self.total - self.done) / max(self.per_hour, 1e-9) * 3600
            self._say(f"{self.done:.1f}/{self.total} networks, {self.per_hour:,.0f}/h, {left:.0f} s left")

    def _say(self, text: str) -> None:
        print(f"{self.what}: {text}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._bar.close()
        if self._bar.disable and kind is None:
            self._say(f"{self.done:.0f}/{self.total} networks, {self.per_hour:,.0f}/h")
