"""The guard at every program's door: one line, an exit code, and the traceback in a file."""

import ast
import re
import tempfile
from pathlib import Path

import pytest

from engram import main as program
from engram.scripts import report, sweep, tune, worker
from engram.scripts.interop import compute_forgetting, import_mlruns
from engram.utils.config import cli
from engram.utils.door import BROKEN, guarded
from engram.utils.errors import UserError
from tests.conftest import ROOT

ERRORS = [
    MemoryError(),
    OSError(28, "No space left on device"),
    RecursionError("too deep"),
    RuntimeError("first line\nsecond line " + "x" * 1000),
    KeyError("what nobody thought of"),
]


def raising(error):
    def stand_in(*args, **keywords):
        raise error

    return stand_in


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_left_becomes_one_line(error, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "parse", raising(error))
    assert program.main([]) == BROKEN
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and len(told.err) < 600
    assert told.err.startswith(f"error: {type(error).__name__}")
    (log,) = re.findall(r"details: (.*)\)", told.err)
    assert "Traceback" in Path(log).read_text() and "stand_in" in Path(log).read_text()


def test_a_full_disk_cannot_hold_the_log(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "mkstemp", raising(OSError(28, "No space left on device")))
    assert guarded(raising(MemoryError()))() == BROKEN
    assert "test_door.py, line" in capsys.readouterr().err


def test_exit_codes_and_passwords(capsys, monkeypatch):
    assert guarded(lambda: 3)() == 3 and guarded(lambda: None)() == 0
    assert guarded(raising(KeyboardInterrupt()))() == 130
    assert guarded(raising(UserError("http://me:s3cr3t@host is away")))() == 2
    assert capsys.readouterr().err == "error: http://***@host is away\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert guarded(raising(UserError("said by process 0")))() == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("module", [report, sweep, tune, compute_forgetting, import_mlruns])
def test_programs_have_the_door(module, monkeypatch, capsys):
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", raising(MemoryError()))
    monkeypatch.setattr("argparse.ArgumentParser.parse_known_args", raising(MemoryError()))
    assert module.main(["x"]) == BROKEN
    assert capsys.readouterr().err.startswith("error: MemoryError")


def test_a_sweeps_worker_has_the_door(monkeypatch, tmp_path):
    monkeypatch.setattr("engram.utils.runs.resume.open_or_create", raising(OSError("gone")))
    assert worker.execute_run(str(tmp_path), {}) == BROKEN


def test_every_program_for_users_has_the_door():
    paths = [*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/interop/*.py"), ROOT / "main.py"]
    for path in paths:
        functions = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
        for function in functions:
            if function.name == "main":
                assert [ast.unparse(name) for name in function.decorator_list] == ["guarded"], path
