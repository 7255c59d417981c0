"""The notebooks as Jupyter runs them: a fresh process each, in the notebooks' own folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.waiting import LIMIT

pytestmark = pytest.mark.slow

# Twelve runs would draw files that no cell shows, which takes longer than to train. What cells show is drawn.
NO_FILES_OF_FIGURES = """
from engram.utils.runs import figures
figures.write_all = lambda record, folder: []
del figures
"""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_they_are_stored_without_outputs():
    assert [path.stem.split("_", 1)[1] for path in NOTEBOOKS] == [
        "first_run", "own_method", "own_data", "memorization"
    ]  # fmt: skip
    for path in NOTEBOOKS:
        for cell in code_cells(path):
            assert cell["outputs"] == [] and cell["execution_count"] is None, path.name


def test_they_run_from_top_to_bottom(tmp_path):
    """In a copy of their folder, with nothing of the repository beside it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text(NO_FILES_OF_FIGURES)
    # as after `pip install -e .`; the repository is in no other way known to the kernel
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["IPYTHONDIR"] = str(tmp_path / "ipython")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    done = subprocess.run(
        [*command, *(path.name for path in NOTEBOOKS)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    texts = {
        path.stem: str([cell["outputs"] for cell in code_cells(folder / path.name)]) for path in NOTEBOOKS
    }
    assert "er on seq-digits, seed 0, finished: class-IL accuracy" in texts["1_first_run"]
    assert "image/png" in texts["1_first_run"] and "Paired" in texts["1_first_run"]
    assert "my_replay on seq-digits, seed 0, finished" in texts["2_own_method"]
    assert "er on my_data, seed 0, finished" in texts["3_own_data"]
    assert "of its training samples are right at the end" in texts["4_memorization"]
