"""Our rooms' names are other people's, too: their `datasets` and `utils` are found while engram runs."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_main

# What a program of ours, or a worker process of it, finds under the names of our rooms.
AT_EXIT = """
import atexit

@atexit.register
def tell():
    import datasets, utils
    print("theirs:", datasets.WHOSE, utils.WHOSE)
"""
CHILDREN = """
import multiprocessing
from engram.utils.processes import child_process_environment

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    context.set_forkserver_preload(["engram.utils.errors"])
    found = "__import__('datasets').WHOSE, __import__('utils').WHOSE, __import__('engram').__file__"
    with child_process_environment(), context.Pool(1) as pool:
        print(*pool.apply(eval, (found,)))
"""


@pytest.fixture
def theirs(tmp_path):
    """A folder with a module `datasets` and a package `utils` that are not ours."""
    folder = tmp_path / "theirs"
    (folder / "utils").mkdir(parents=True)
    (folder / "datasets.py").write_text("WHOSE = 'user'\n")
    (folder / "utils" / "__init__.py").write_text("WHOSE = 'user'\n")
    return folder


def test_main_leaves_the_names_of_our_rooms_to_others(theirs, tmp_path):
    (theirs / "sitecustomize.py").write_text(AT_EXIT)
    flags = (
        "--model",
        "sgd",
        "--dataset",
        "seq-digits",
        "--disable_log",
        "--debug_mode",
        "1",
        "--device",
        "cpu",
    )
    done = run_main(*flags, cwd=tmp_path, PYTHONPATH=str(theirs))
    assert "theirs: user user" in done.stdout


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_we_start_do_so_too(theirs, tmp_path, method):
    script = tmp_path / "script" / "start.py"
    script.parent.mkdir()
    script.write_text(CHILDREN.format(method=method))
    path = os.pathsep.join([str(ROOT), str(theirs)])  # ours in front, as child_process_environment has it
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["user", "user", str(ROOT / "engram.py")], done.stderr
