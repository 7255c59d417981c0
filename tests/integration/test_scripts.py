"""Programs of scripts/: each explains itself, and the commands in its docstring are ones that it takes."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PATHS = sorted((ROOT / "scripts").rglob("*.py"))
# Processes that other programs start: they read what they are sent instead of a command line.
SERVERS = {"scripts/dev/mutation_server.py", "scripts/worker.py"}
PROGRAMS = sorted(
    {str(path.relative_to(ROOT)) for path in PATHS if '__name__ == "__main__"' in path.read_text()} - SERVERS
)


def call_help(path: str, capsys, monkeypatch) -> str:
    """What `python PATH --help` prints, called in this process: torch is imported once for all programs."""
    module = importlib.import_module("engram." + path.removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", [path])
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def usage_lines(path: str) -> list[str]:
    """Commands in the module's docstring that call this program."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return [
        line.strip() for line in text.splitlines() if line.startswith("    python ") and called(path) in line
    ]


def called(path: str) -> str:
    """How a program is called: by its path, or as a package."""
    return "python -m scripts.bench" if path == "scripts/bench/__main__.py" else f"python {path}"


def test_there_are_programs():
    assert len(PROGRAMS) >= 20


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_explains_itself(path, capsys, monkeypatch):
    """--help prints usage and docstring; the commands in it call this program with flags that it has."""
    text = call_help(path, capsys, monkeypatch)
    assert text.startswith("usage: ") and "__main__.py" not in text
    lines = usage_lines(path)
    assert lines, f"{path}: its docstring has no line `    {called(path)} ...`"
    if Path(path).name in ("sweep.py", "tune.py"):  # they also take the flags of main.py
        return
    for flag in {flag for line in lines for flag in re.findall(r"(?<!\S)\[?(--\w+)", line)}:
        assert re.search(rf"{flag}\b", text.split("\n\n", 1)[0] + text.split("options:", 1)[-1]), (path, flag)
