"""Plans for test_worker_pool.py: they must be importable by the worker processes."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from engram.memorization.worker_pool import JobFunction, Report
from engram.utils.errors import UserError


@dataclass(frozen=True)
class FilePlan:
    """Job j writes the process id and number of threads to a file; two job numbers may end otherwise."""

    folder: str
    refused: int | None = None
    killed: int | None = None

    def prepare(self, device: torch.device) -> JobFunction:
        """Nothing is loaded; the device must have arrived as one."""
        assert device.type == "cpu"
        return self.run_job

    def run_job(self, job: int, report: Report) -> None:
        """Report two networks, half a network at a time."""
        if job == self.refused:
            raise UserError(f"job {job} cannot be done")
        if job == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(self.folder) / str(job)).write_text(f"{os.getpid()} {torch.get_num_threads()}")
        for _ in range(4):
            report(0.5)
