"""The guard at every program's door: one line, an exit code, and the traceback in a file."""

import ast
import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from engram import main as program
from engram.scripts import report, sweep, tune, worker
from engram.scripts.interop import compute_forgetting, import_mlruns
from engram.utils.config import cli
from engram.utils.door import BROKEN, READER_GONE, guarded
from engram.utils.errors import UserError
from tests.conftest import ROOT

ERRORS = [
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


def too_large_for(kind):
    """What numpy and torch raise for something that no memory holds, and what CUDA does."""
    if kind == "numpy":
        np.empty(2**62, dtype=np.uint8)
    if kind == "torch":
        torch.empty(2**62, dtype=torch.uint8)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize(
    ("kind", "amount"),
    [("numpy", "4.00 EiB"), ("torch", "4611686018427387904 bytes"), ("CUDA", "20.00 GiB")],
)
def test_what_memory_does_not_hold_is_a_users_error(kind, amount, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert guarded(lambda: too_large_for(kind))() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: not enough memory on this computer or its GPU: {amount} were asked for")
    (log,) = re.findall(r"details: (.*)\)", told)
    assert told.count("\n") == 1 and "too_large_for" in Path(log).read_text()
    assert guarded(raising(MemoryError()))() == 2
    assert capsys.readouterr().err.startswith("error: not enough memory on this computer or its GPU; a ")


def test_a_full_disk_cannot_hold_the_log(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "mkstemp", raising(OSError(28, "No space left on device")))
    assert guarded(raising(RecursionError()))() == BROKEN
    assert "test_door.py, line" in capsys.readouterr().err


def test_exit_codes_and_passwords(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert guarded(lambda: 3)() == 3 and guarded(lambda: None)() == 0
    assert guarded(raising(KeyboardInterrupt()))() == 130
    assert guarded(raising(UserError("http://me:s3cr3t@host is away")))() == 2
    assert capsys.readouterr().err == "error: http://***@host is away\n"
    assert guarded(raising(ValueError("http://me:s3cr3t@host is odd")))() == BROKEN
    said = capsys.readouterr().err
    (log,) = re.findall(r"details: (.*)\)", said)
    assert "s3cr3t" not in said + Path(log).read_text() and "http://***@host is odd" in Path(log).read_text()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert guarded(raising(UserError("said by process 0")))() == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("module", [report, sweep, tune, compute_forgetting, import_mlruns])
def test_programs_have_the_door(module, monkeypatch, capsys):
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", raising(RecursionError()))
    monkeypatch.setattr("argparse.ArgumentParser.parse_known_args", raising(RecursionError()))
    assert module.main(["x"]) == BROKEN
    assert capsys.readouterr().err.startswith("error: RecursionError")


def test_a_sweeps_worker_has_the_door(monkeypatch, tmp_path):
    monkeypatch.setattr("engram.utils.runs.resume.open_or_create", raising(OSError("gone")))
    assert worker.execute_run(str(tmp_path), {}) == BROKEN


NO_DOOR = {
    "scripts/dev/mutation_server.py"
}  # the tests that it starts must be the first to import the project


def programs() -> list[Path]:
    """Every file that can be started, but the programs of memorization/, which go through `cli.main`."""
    rooms = [
        ROOT / "main.py",
        ROOT / "memorization" / "__main__.py",
        *(p for room in ("scripts", "utils", "models") for p in ROOT.glob(f"{room}/**/*.py")),
    ]
    return [path for path in rooms if '__name__ == "__main__"' in path.read_text()]


def test_every_program_has_the_door():
    without = set()
    for path in programs():
        functions = {n.name: n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
        decorators = functions["main"].decorator_list if "main" in functions else []
        if [ast.unparse(name) for name in decorators] != ["guarded"]:
            without.add(str(path.relative_to(ROOT)))
    assert without == NO_DOOR


def test_every_program_of_memorization_goes_through_the_door():
    for path in ROOT.glob("memorization/*.py"):
        if path.name not in ("cli.py", "__main__.py") and '__name__ == "__main__"' in path.read_text():
            assert path.read_text().endswith(f'sys.exit(cli.main("{path.stem}"))\n'), path


def test_every_programs_exit_code_leaves_it():
    for path in programs():
        if str(path.relative_to(ROOT)) not in NO_DOOR:
            assert re.search(r"\n    sys\.exit\((memorization\.)?main\(\)\)", path.read_text()), path


# --- output that nobody reads ---------------------------------------------------------------------


def shell(command: str) -> subprocess.CompletedProcess:
    """A command line in bash, `$PYTHON` being this interpreter; the exit code is the first command's."""
    environment = os.environ | {"PYTHON": sys.executable}
    words = ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_help_into_head_ends_silently():
    done = shell("$PYTHON main.py --list | true")
    assert (done.returncode, done.stderr) == (READER_GONE, "")


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_output_onto_a_full_disk_is_one_line(flag):
    done = shell(f"$PYTHON main.py {flag} > /dev/full")
    assert done.returncode == BROKEN
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_a_broken_connection_is_not_a_broken_output(capsys):
    assert guarded(raising(BrokenPipeError(32, "Broken pipe")))() == BROKEN
    assert capsys.readouterr().err.startswith("error: BrokenPipeError")


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EACCES])
def test_a_path_that_cannot_be_is_wrong_input(code, capsys):
    assert guarded(raising(OSError(code, os.strerror(code), "given/path")))() == 2
    assert "given/path" in capsys.readouterr().err


def test_nothing_follows_the_last_line_of_a_program_that_imported_triton():
    done = shell("$PYTHON main.py --model sgd --backbone torchvision:resnet19 --disable_log")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "there is no such network" in done.stderr


def test_a_program_of_another_checkout_is_refused(tmp_path, monkeypatch, capsys):
    """An environment in which one clone is installed, and the programs of a second one."""
    started = sys.modules["__main__"]
    (tmp_path / "engram.py").touch()
    program = str(tmp_path / "scripts" / "interop" / "import_mlruns.py")
    monkeypatch.setattr(started, "__file__", program, raising=False)  # a process of xdist has none
    assert import_mlruns.main([str(tmp_path)]) == 2
    assert f"is of the checkout {tmp_path}, and Python imports engram from {ROOT}" in capsys.readouterr().err
    clone = tmp_path / "clones" / "engram.py"  # within the other one
    clone.parent.mkdir()
    clone.touch()
    for imported, code in ((clone, "no MLflow file store"), (tmp_path / "engram.py", str(clone.parent))):
        monkeypatch.setattr(started, "__file__", str(clone.parent / "main.py"))
        monkeypatch.setattr("engram.utils.door.engram.__file__", str(imported))
        assert import_mlruns.main([str(tmp_path / "nothing")]) == 2
        assert code in capsys.readouterr().err
    monkeypatch.setattr("engram.utils.door.engram.__file__", str(ROOT / "engram.py"))
    for own in (ROOT / "scripts" / "sweep.py", tmp_path / "x" / "bin" / "engram", None):
        monkeypatch.setattr(started, "__file__", own and str(own))
        assert import_mlruns.main([str(tmp_path / "nothing")]) == 2
        assert "no MLflow file store" in capsys.readouterr().err
