"""The tests themselves: no outcome depends on how busy the machine is or on a draw that is not repeated."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.rglob("*.py"))
CLOCK_MODULE = TESTS / "waiting.py"
CLOCKS = {"time", "time_ns", "monotonic", "perf_counter", "process_time", "sleep", "now", "today", "utcnow"}
SEEDED = {"Random", "RandomState", "default_rng", "SeedSequence"}  # generators, which need a seed
DRAWS = {
    "random",
    "rand",
    "randn",
    "randint",
    "randrange",
    "choice",
    "choices",
    "sample",
    "shuffle",
    "uniform",
}
DRAWS |= {"uniform", "normal", "permutation", "gauss", "random_sample"}
NEVER = {"secrets", "uuid", "socket"}  # modules of numbers, and of ports, that no second run has again


def luck(text: str) -> list[str]:
    """Lines of a file that read a clock, draw numbers without a seed, set a short limit or choose a port."""
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(ast.parse(text)) if is_luck(node)]


def is_luck(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return bool(NEVER & {alias.name for alias in node.names})
    if isinstance(node, ast.ImportFrom):
        return node.module in {*NEVER, "time", "random"}
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    limits = [k.value for k in node.keywords if k.arg == "timeout"]
    if called.endswith(("process.join", "thread.join")):
        limits += node.args
    if any(isinstance(limit, ast.Constant) for limit in limits):
        return True
    of, _, name = called.rpartition(".")
    if of.split(".")[0] in ("time", "datetime"):
        return name in CLOCKS
    if of in ("random", "np.random", "numpy.random"):
        return name in DRAWS or (name in SEEDED and not node.args)
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(TESTS)))
def test_nothing_is_left_to_luck(path):
    """Clocks and limits are those of `tests.waiting`, draws those of `random_draws` or of a fixed seed."""
    if path != CLOCK_MODULE:
        assert not luck(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "import time\ntime.sleep(1)", "from time import monotonic", "started = time.perf_counter()",
        "datetime.datetime.now()", "process.wait(timeout=60)", "process.join(300)", "import socket",
        "np.random.default_rng()", "np.random.rand(3)", "random.random()",
    ],
)  # fmt: skip
def test_the_check_above_can_fail(line):
    assert len(luck(line)) == 1


def test_the_check_above_lets_pass_what_is_no_luck():
    assert not luck(
        "import time, random\nmonkeypatch.setattr(time, 'monotonic', clock)\nrandom.Random(3)\n"
        "np.random.default_rng(0)\nprocess.wait(timeout=LIMIT)\n', '.join('ab')"
    )
