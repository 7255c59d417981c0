"""Run tests against mutants of one module: started by mutation_check.py in a copy of the project.

    python scripts/dev/mutation_server.py utils/metrics/statistics.py tests/unit/test_statistics.py

Runs the tests once, so that everything is imported, and writes what they took as a line of JSON. Then it
reads one mutant per line, {"function": name or null, "source": text}, tests it in a fork of itself, and
writes {"status": "killed" or "survived"}. A change inside a function is made by exchanging that function's
code, so nothing is imported again; any other change needs all of the project's modules anew.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from time import process_time
from types import CodeType, FunctionType

import pytest

HANGS_AFTER = 900  # seconds; a process that computes is ended earlier, by the CPU time it used
ARGUMENTS = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header", "--durations=0"]


def main(target: str, *tests: str) -> None:
    """Serve mutants of the file `target`, relative to the current folder, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with open("mutation_check.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    started = process_time()
    code = pytest.main([*ARGUMENTS, *tests])
    seconds = process_time() - started
    answers.write(json.dumps({"code": int(code), "seconds": seconds}) + "\n")
    functions = live_functions(Path(target).resolve())
    gc.freeze()
    for line in sys.stdin:
        status = in_fork(Path(target), tests, functions, 10 + 5 * seconds, **json.loads(line))
        answers.write(json.dumps({"status": status}) + "\n")


def live_functions(path: Path) -> dict[str, FunctionType]:
    """Qualified name → function, of the functions and methods that the file defined."""
    functions = (f for f in gc.get_objects() if isinstance(f, FunctionType))
    return {f.__code__.co_qualname: f for f in functions if f.__code__.co_filename == str(path)}


def in_fork(
    path: Path, tests: tuple[str, ...], functions: dict[str, FunctionType], cpu_seconds: float,
    function: str | None, source: str,
) -> str:  # fmt: skip
    """Whether the tests pass with this source of the file: "survived" when they do, else "killed"."""
    original = path.read_text()
    process = os.fork()
    if not process:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 1))
        signal.alarm(HANGS_AFTER)
        code = 1
        try:
            exchange(functions.get(function), source, path) or import_anew(source, path)
            code = int(pytest.main([*ARGUMENTS, *tests]))
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    path.write_text(original)
    return "survived" if status == 0 else "killed"


def exchange(function: FunctionType | None, source: str, path: Path) -> bool:
    """Give the function its code in the mutated source; False where that is not possible."""
    if function is None:
        return False
    wanted = function.__code__.co_qualname
    codes = [c for c in codes_in(compile(source, str(path), "exec")) if c.co_qualname == wanted]
    if len(codes) != 1 or codes[0].co_freevars != function.__code__.co_freevars:
        return False
    function.__code__ = codes[0]
    return True


def codes_in(code: CodeType) -> list[CodeType]:
    """All code objects below one."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [found for c in inner for found in (c, *codes_in(c))]


def import_anew(source: str, path: Path) -> None:
    """Write the file and forget the project's modules; the tests import them again."""
    sys.dont_write_bytecode = True
    path.write_text(source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    project = str(Path.cwd())
    for name, module in list(sys.modules.items()):
        if name != "__main__" and (getattr(module, "__file__", None) or "").startswith(project):
            del sys.modules[name]
    importlib.invalidate_caches()


if __name__ == "__main__":
    main(*sys.argv[1:])
