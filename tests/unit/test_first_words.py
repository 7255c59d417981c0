"""What a program says on a terminal before it imports what takes seconds."""

import os
import pty
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Program and flags → its first words. Each imports PyTorch, or draws, before it has anything else to say.
PROGRAMS = {
    "main.py --model er": "starting er on seq-digits: loading PyTorch ...",
    "main.py --resume NOTHING": "resuming NOTHING: loading PyTorch ...",
    "scripts/sweep.py --model er --seed 0 1 --dry_run": "starting er on seq-digits: loading PyTorch ...",
    "scripts/report.py NOTHING": "reading runs ...",
    "scripts/check_plugin.py NOTHING.py": "checking NOTHING.py: loading PyTorch and the tests ...",
    "scripts/docs.py --out NEW": "writing the pages of all plugins into NEW ...",
    "-m engram.memorization.train_splits --weights_dir NEW": "train_splits on digits: loading PyTorch ...",
    "-m engram.memorization.plots --runs NOTHING --out_dir NEW": "plots: loading PyTorch ...",
}
HEAVY = {"torch", "matplotlib", "pandas", "scipy", "mlflow", "sklearn"}


def said_and_imported(command: list[str], folder) -> tuple[str, set[str]]:
    """The first line that is no report of an import, and the packages that were imported before it."""
    ours, its = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command],
        cwd=folder, env=environment, stdin=its, stdout=its, stderr=its,
    )  # fmt: skip
    os.close(its)
    imported: set[str] = set()
    try:
        with open(ours, encoding="utf-8", errors="replace") as terminal:
            for line in terminal:
                if not line.startswith("import time:"):
                    return line.strip(), imported
                imported.add(line.rsplit("|", 1)[1].strip().split(".")[0])
    finally:
        process.kill()
        process.wait()
    raise AssertionError(f"{command} said nothing")


@pytest.mark.parametrize("command", PROGRAMS)
def test_something_is_said_before_imports_that_take_seconds(command, tmp_path):
    program, *flags = command.split()
    program = [program] if program.startswith("-") else [str(ROOT / program)]
    words, imported = said_and_imported([*program, *flags], tmp_path)
    assert words == PROGRAMS[command] and not imported & HEAVY
