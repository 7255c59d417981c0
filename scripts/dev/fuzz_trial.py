"""A trial of the fuzz: one program in a fork of this process, in a folder of its own, and what is wrong.

A fork of a process that has imported everything starts in milliseconds. The program gets little processor
time; when that is used up it is asked to end by SIGTERM, as a scheduler does, and must do so.
"""

import contextlib
import importlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from engram.datasets import sources
from engram.utils import figure_files
from engram.utils.config import registry

CPU_SECONDS, MORE_TO_END = 4, 10
MEMORY = 6 << 30  # bytes that a trial may take beyond what this process has mapped
MAX_LINE = 700
INTERRUPTED, BY_SIGTERM = 128 + signal.SIGTERM, -signal.SIGTERM
CODES = {0, 1, 2, INTERRUPTED, 130}  # 1: diverged; 2: wrong input


# Imported by programs when they start to work: a fork finds it done.
MODULES = (
    "torch._dynamo", "engram.models.build", "engram.utils.runs.session", "engram.utils.runs.figures",
    *(f"engram.memorization.{name}" for name in (
        "figures", "split_training", "split_scores", "leave_one_out", "stream_scores", "proxy_scores",
        "correlation_table", "left_out_samples", "run_plots",
    )),
)  # fmt: skip


def warm_up() -> None:
    """Import what trials need, on one thread: a fork has no others."""
    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    for kind in ("models", "datasets", "backbones"):
        for plugin in registry.names(kind):
            registry.load(kind, plugin)
    sources.digits()
    figures = importlib.import_module("engram.utils.runs.figures")
    figures.write_all = lambda record, folder: []  # a run's figures take longer than the run
    figure_files.encoded = lambda figure, file_format, dpi=0: b""  # a report's longer than the report


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit code, negative for a signal, and what it printed."""

    code: int
    out: str
    err: str
    asked_to_end: bool


def in_fork(program: Callable[[], object], folder: Path) -> Outcome:
    """Run the program in a fork, in `folder`; its home and its temporary files lie beside that."""
    for name in ("home", "tmp", "told"):
        (folder.parent / name).mkdir(exist_ok=True)
    told = folder.parent / "told"
    sys.stdout.flush(), sys.stderr.flush()
    process = os.fork()
    if not process:
        code = 70
        try:
            _prepare(folder, told)
            code = _exit_code(program)
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    out, err = ((told / name).read_text(errors="replace") for name in ("out", "err"))
    return Outcome(os.waitstatus_to_exitcode(status), out, err, (told / "asked").exists())


def _prepare(folder: Path, told: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(told / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
    (told / "asked").unlink(missing_ok=True)
    os.chdir(folder)
    os.environ |= {"HOME": str(folder.parent / "home"), "TMPDIR": str(folder.parent / "tmp")}
    tempfile.tempdir = None

    def ask_to_end(number: int, frame: FrameType | None) -> None:
        (told / "asked").touch()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGPROF, ask_to_end)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + MORE_TO_END,) * 2)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)


def _exit_code(program: Callable[[], object]) -> int:
    """What the interpreter makes of `sys.exit(program())`."""
    try:
        code = program()
    except SystemExit as stop:
        code = stop.code
    if code is None or isinstance(code, int):
        return int(code or 0)
    print(code, file=sys.stderr)
    return 1


def faults(outcome: Outcome, folder: Path) -> list[str]:
    """What no program may do, whatever it is given: sentences, none if all is well."""
    wrong = []
    ended_on_request = outcome.asked_to_end and outcome.code in (BY_SIGTERM, INTERRUPTED)
    if outcome.code not in CODES and not ended_on_request:
        wrong.append(f"exit code {outcome.code}: {last_line(outcome.err)}")
    if "Traceback (most recent call last)" in outcome.out + outcome.err:
        wrong.append(f"a traceback: {last_line(outcome.err)}")
    if outcome.code in (1, 2) and not outcome.err.strip():
        wrong.append(f"exit code {outcome.code} without a word")
    if any(len(line) > 20 * MAX_LINE for line in outcome.err.splitlines()):
        wrong.append("a line longer than anybody reads")
    if outcome.code >= 0:
        left = [
            p for p in (*folder.rglob("*.tmp"), *(folder.parent / "tmp").iterdir()) if "error-" not in p.name
        ]
        wrong += [f"left over: {path.relative_to(folder.parent)}" for path in left[:1]]
    return wrong


def last_line(text: str) -> str:
    """The last line of a text, shortened."""
    lines = text.strip().splitlines() or ["no word on stderr"]
    return lines[-1][:MAX_LINE]
