"""Engram's import name: `engram.models` is the folder `models/` beside this file, and so on for every room.

The folders stay at the top of the repository; this module becomes a package by stating where its parts lie
(`__path__`). `python main.py`, `pip install -e .` and `pip install .` import the same names. An installed
copy has its rooms in a folder `engram/` beside this file, where nobody else's `utils` or `datasets` lives.

In a notebook or a program of your own:

    import engram

    result = engram.train(model="er", dataset="seq-digits", buffer_size=200)
    result.R, result.metrics, result.plot()
    engram.results("runs/seq-digits/er/ID")   # of a run that is there already
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engram.utils.runs.run_result import RunResult

_here = os.path.dirname(os.path.realpath(__file__))
is_installed = os.path.isdir(os.path.join(_here, "engram"))
__path__ = [os.path.join(_here, "engram") if is_installed else _here]

# `python main.py` puts this folder in front of the module search path; PYTHONPATH does so in processes that
# we start. Others have packages called `utils` and `datasets`, too (Hugging Face's, or your own): since
# ours are found through `__path__`, the folder can go to the end, where `pip install -e .` has it.
if not is_installed:
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.realpath(entry) != _here] + [_here]


def train(**flags: object) -> "RunResult":
    """Run with main.py's flags as keyword arguments; returns what the run has measured.

    It waits for figures and MLflow, which the program that goes on may read: `wait_for_log=False` does not.
    """
    from engram.main import run  # imports at the call: `import engram` itself takes no time
    from engram.utils.config import cli
    from engram.utils.config.run_key import arguments
    from engram.utils.runs.run_result import RunResult

    config = cli.parse(arguments({"wait_for_log": True} | flags)).config
    assert config is not None, "flags of a new run"
    _, run_dir = run(config)
    assert run_dir is not None, "a single process has a folder"
    return RunResult(run_dir.path)


def results(path: str | Path) -> "RunResult":
    """What a run has measured, given its folder."""
    from engram.utils.runs.run_result import RunResult

    return RunResult(path)
