"""What the worker processes of a sweep execute: one run in a folder, or several in one process.

utils/sweeps names these functions as text (`engram.scripts.worker:execute_run`), since it must not import
what is above it.
"""

import functools
import os
from pathlib import Path
from typing import Any

from engram import main
from engram.utils.door import guarded
from engram.utils.runs import resume
from engram.utils.training.interleaved import InterleavedJob, run_interleaved


@guarded
def execute_run(path: str, flags: dict[str, Any]) -> int:
    """Start the run of these flags in the folder `path`, or continue it; returns the exit code."""
    config, run_dir = resume.open_or_create(Path(path), flags)
    if run_dir.finished:
        return 0
    return main.run(config, run_dir, resumed=True, wait=True)[0]


def execute_interleaved(runs: list[tuple[str, dict[str, Any]]]) -> int:
    """As `execute_run` for several runs, which share this process and take turns; one exit code for all."""
    return run_interleaved(
        [
            InterleavedJob(
                functools.partial(execute_run, path, flags), os.path.join(path, "output.txt"), flags["device"]
            )
            for path, flags in runs
        ]
    )
