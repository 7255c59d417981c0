"""Python's collector rests while torch is imported and at the end of the process."""

import gc
import subprocess
import sys

from engram.utils import garbage
from tests.conftest import ROOT


def test_paused_leaves_the_collector_as_it_was():
    assert gc.isenabled()
    with garbage.paused():
        assert not gc.isenabled()
        with garbage.paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def output_of(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_nothing_is_collected_while_the_command_line_imports_torch():
    code = """
import gc
collected = []
from engram import main
gc.callbacks.append(lambda phase, info: collected.append(phase))
main.run = lambda config: (print(len(collected), gc.isenabled()), 0)[::-1]
main.main(["--model", "er", "--dataset", "seq-digits"])
"""
    n_phases, enabled = output_of(code).split()
    assert int(n_phases) < 20 and enabled == "True"  # a thousand without the pause


def test_what_is_alive_at_the_end_of_a_program_is_not_looked_through():
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count())); from engram import main"
    assert int(output_of(code)) > 1000
