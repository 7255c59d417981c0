"""Slurm pool: every job is a Slurm job of its own, submitted through submitit.

Slurm decides when and where a job runs. A run that reaches its time limit, or that Slurm preempts, is asked
to save its state, is put back into Slurm's queue and goes on from its checkpoint. Project, output and data
folders must be the same paths on every node (a shared file system). What trains knows nothing of Slurm.
"""

import dataclasses
import shutil
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from engram.utils.credentials import moved_to_environment
from engram.utils.errors import UserError
from engram.utils.processes import child_process_environment
from engram.utils.sweeps import process_pool
from engram.utils.sweeps.job_pool import Job, JobPool

if TYPE_CHECKING:
    import submitit

MAX_TIMEOUTS = 1000  # times that a run may reach its time limit and go on; each time it has saved its state
POLL_SECONDS = 0.5
GPU_OPTIONS = {"gpus", "gpus-per-node", "gpus-per-task", "gres"}  # left out for jobs that need no GPU


class SlurmPool(JobPool["submitit.Job[int]"]):
    """At most `max_jobs` jobs (None: all) in Slurm's queue, with sbatch's `options` and `cpus_per_run` cores.

    submitit's files (the sbatch script, its log and the exit code) lie in `folder`, one subfolder a job.
    `cluster` is submitit's name of the executor: "slurm", or "local" for processes here, which tests use.
    """

    stop_seconds = 120.0

    def __init__(
        self, folder: Path, options: dict[str, str], cpus_per_run: int, max_jobs: int | None = None,
        cluster: str = "slurm",
    ):  # fmt: skip
        super().__init__()
        self.submitit = import_submitit()
        if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise UserError(
                "--slurm: no sbatch and srun here; start the sweep on a login node of the cluster"
            )
        self.options = {name: value for name, value in options.items() if name != "time"}
        self.timeout_min = minutes(options["time"])
        self.cpus_per_run, self.max_jobs = cpus_per_run, max_jobs
        path = folder.expanduser().absolute() / "%j"
        self.executor = self.submitit.AutoExecutor(path, cluster, slurm_max_num_timeout=MAX_TIMEOUTS)

    def has_room(self) -> bool:
        """Whether fewer than `max_jobs` jobs are with Slurm."""
        return self.max_jobs is None or len(self.running) < self.max_jobs

    def start(self, job: Job) -> "submitit.Job[int]":
        """Submit the job with sbatch; submitit writes its arguments to a file, so without passwords."""
        job = dataclasses.replace(job, arguments=moved_to_environment(job.arguments))
        options = {k: v for k, v in self.options.items() if job.gpu or k not in GPU_OPTIONS}
        self.executor.update_parameters(
            name=job.name, timeout_min=self.timeout_min, cpus_per_task=self.cpus_per_run,
            slurm_additional_parameters=options,
        )  # fmt: skip
        try:
            with child_process_environment():
                return self.executor.submit(SlurmTask(job))
        except self.submitit.core.utils.FailedJobError as error:
            raise UserError(f"--slurm: sbatch refused the job: {str(error).strip()}") from None

    def ended(self, timeout: float) -> dict["submitit.Job[int]", int]:
        """Exit codes of the jobs that have ended; one that Slurm ended without a result counts as killed.

        A job's own end is seen at once; that Slurm has ended it (out of memory, a lost node) is asked for
        every two seconds at first and every ten minutes in the end.
        """
        deadline = time.monotonic() + timeout
        while not (done := [handle for handle in self.running if handle.done()]):
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        return {handle: self._exit_code(handle) for handle in done}

    def _exit_code(self, handle: "submitit.Job[int]") -> int:
        try:
            return handle.result()
        except self.submitit.core.utils.FailedJobError:
            return 1
        except self.submitit.core.utils.UncompletedJobError:
            return -signal.SIGKILL

    def interrupt(self, handle: "submitit.Job[int]") -> None:
        """Cancel the job: Slurm sends SIGTERM, on which a running one saves and ends, and SIGKILL later."""
        handle.cancel(check=False)

    def kill_job(self, handle: "submitit.Job[int]") -> None:
        """Nothing is quicker than `interrupt`, which Slurm completes without this process."""
        handle.cancel(check=False)


class SlurmTask:
    """What submitit calls on a node: the job in a process of its own, which signals are passed on to."""

    def __init__(self, job: Job):
        self.job = job
        self.process: ForkServerProcess | None = None

    def __call__(self) -> int:
        """Execute the job; returns its exit code."""
        signal.signal(signal.SIGTERM, self._interrupt)
        self.process = process_pool.start_process(self.job, gpu=None)  # Slurm has set which GPUs are visible
        self.process.join()
        assert self.process.exitcode is not None, "joined"
        return self.process.exitcode

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Before the time limit: let the run save; what is returned is put into the queue again."""
        submitit = import_submitit()
        if self.process is not None:
            self.process.terminate()
            self.process.join()
        return submitit.helpers.DelayedSubmission(SlurmTask(self.job))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.process is None:
            sys.exit(128 + number)
        self.process.terminate()


def parse_options(text: str) -> dict[str, str]:
    """sbatch's options from `partition=gpu,time=04:00:00,gpus=1`: name with dashes → value."""
    options = {}
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"--slurm {text}: '{word}' is no option of sbatch's; expected e.g. partition=gpu")
        options[name.strip().lstrip("-").replace("_", "-")] = value.strip()
    if "time" not in options:
        raise UserError("--slurm: say how long a run may take before it is saved and queued again: time=240")
    minutes(options["time"])
    return options


def minutes(text: str) -> int:
    """Minutes in a time as sbatch takes it: `240`, `04:00:00`, `1-12:00:00` (days-hours:minutes:seconds)."""
    days, dash, clock = text.rpartition("-")
    numbers = clock.split(":")
    if not all(number.isdigit() for number in [*numbers, *([days] if dash else [])]) or len(numbers) not in (
        (3,) if dash else (1, 3)
    ):
        raise UserError(f"--slurm time={text}: expected minutes, HOURS:MINUTES:SECONDS or DAYS-HH:MM:SS")
    hours_to_seconds = [int(number) for number in numbers] if len(numbers) == 3 else [0, int(numbers[0]), 0]
    hours, whole_minutes, seconds = hours_to_seconds
    total = 24 * 60 * int(days or 0) + 60 * hours + whole_minutes + (seconds > 0)
    if not total:
        raise UserError(f"--slurm time={text}: must be at least one minute")
    return total


def import_submitit() -> ModuleType:
    """The package submitit; `UserError` with the command that installs it when it is missing."""
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--slurm needs submitit: pip install submitit (the project's extra `slurm`)"
        ) from None
    return submitit
