"""Do the tests notice small mistakes in the numerics? Mutate each file, run its tests, list what survives.

    python scripts/dev/mutation_check.py                               all files of TESTS
    python scripts/dev/mutation_check.py utils/metrics/statistics.py   some of them
    python scripts/dev/mutation_check.py --list utils/metrics/statistics.py   its mutants, nothing is run

A mutant is killed when one of the file's tests fails. Mutants that compute the same, or differ in speed
alone, stand with a reason in equivalent_mutants.yaml. Everything runs in temporary copies of the project.
Results are kept in --state, so that an interrupted check goes on where it was; a mutant that survived is
tried again, since tests were added meanwhile. Exits with 1 when a mutant is neither killed nor equivalent.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import yaml

from engram.scripts.dev.mutants import Mutant, mutants_of
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.destinations import check_file
from engram.utils.door import guarded

ROOT = Path(__file__).resolve().parents[2]
SERVER = "scripts/dev/mutation_server.py"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
# File → the tests that are to notice every mistake in it, those first that notice most.
TESTS = {
    "utils/metrics/accuracy_matrix.py": ["tests/unit/test_metrics.py"],
    "utils/metrics/statistics.py": ["tests/unit/test_statistics.py"],
    "utils/buffers/reservoir.py": ["tests/unit/test_buffer.py", "tests/unit/test_memory.py"],
    "utils/buffers/ring.py": ["tests/unit/test_rings.py", "tests/unit/test_memory.py"],
    "utils/buffers/weighted_reservoirs.py": [
        "tests/unit/test_memory.py", "tests/unit/test_reservoirs.py", "tests/unit/test_buffer.py"
    ],
    "utils/buffers/selection.py": ["tests/unit/test_selection.py", "tests/unit/test_reservoirs.py"],
    "utils/buffers/factory.py": ["tests/unit/test_memory.py"],
    "models/parts/quadratic.py": ["tests/unit/test_quadratic.py"],
    "models/parts/importance.py": ["tests/reference/test_importance.py"],
    "utils/training/accuracy_log.py": [
        "tests/unit/test_logged_values.py", "tests/unit/test_evaluation_subset.py",
        "tests/unit/test_training.py", "tests/unit/test_training_curve.py",
    ],
    "memorization/estimator.py": ["tests/reference/test_estimator.py"],
}  # fmt: skip


@dataclass(frozen=True)
class Equivalent:
    """Mutants of a line that no test can tell from it: all of them, or the one that reads `mutant`."""

    line: str
    why: str
    mutant: str | None = None

    def covers(self, mutant: Mutant) -> bool:
        """Whether it is about this mutant."""
        return mutant.before == self.line and self.mutant in (None, mutant.after)


class State:
    """What is known of the mutants of every file: name → "killed" or "survived", kept in a JSON file."""

    def __init__(self, path: Path):
        self.path, self.lock = path, Lock()
        self.status: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}

    def set(self, file: str, mutant: Mutant, status: str) -> None:
        """Note one result and write all of them."""
        with self.lock:
            self.status.setdefault(file, {})[mutant.name] = status
            self.path.write_text(json.dumps(self.status, indent=1, ensure_ascii=False))

    def of(self, file: str, mutant: Mutant) -> str | None:
        """The status of one mutant, None when it was not tried."""
        return self.status.get(file, {}).get(mutant.name)


class Server:
    """A process in a copy of the project that runs a file's tests against one mutant after the other."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def status(self, mutant: Mutant) -> str:
        """Try one mutant: returns "killed" or "survived"."""
        self.process.stdin.write(json.dumps({"function": mutant.function, "source": mutant.source}) + "\n")
        self.process.stdin.flush()
        return self.answer()["status"]

    def answer(self) -> dict:
        """The next line that the process writes."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the test server has ended")
        return json.loads(line)


@contextmanager
def server(copy: Path, file: str) -> Iterator[Server]:
    """A server for the file's mutants, once its tests have passed without one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, SERVER, file, *TESTS[file]]
    with subprocess.Popen(
        command, cwd=copy, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        started = Server(process)
        if started.answer()["code"]:
            process.stdin.close()
            told = (copy / "mutation_check.log").read_text()[-2000:]
            raise SystemExit(f"{told}\nerror: the tests of {file} fail without a mutant")
        yield started


def equivalents() -> dict[str, list[Equivalent]]:
    """File → its equivalent mutants, as listed."""
    listed = yaml.safe_load(EQUIVALENT.read_text()) or {}
    return {file: [Equivalent(**entry) for entry in entries] for file, entries in listed.items()}


def to_try(file: str, state: State) -> list[Mutant]:
    """Mutants that are neither known to be killed nor listed as equivalent."""
    listed = equivalents().get(file, [])
    mutants = mutants_of((ROOT / file).read_text())
    return [m for m in mutants if state.of(file, m) != "killed" and not any(e.covers(m) for e in listed)]


def check(file: str, state: State) -> None:
    """Try the mutants of one file, in a copy of the project of its own."""
    mutants = to_try(file, state)
    if not mutants:
        return
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "engram"
        copy_project(copy)
        with server(copy, file) as tests:
            for mutant in mutants:
                status = tests.status(mutant)
                state.set(file, mutant, status)
                if status == "survived":
                    print(f"{file}:{mutant.line}: {mutant.before}\n    survived: {mutant.after}", flush=True)


def copy_project(folder: Path) -> None:
    """Copy every file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def table(files: list[str], state: State) -> tuple[str, int]:
    """(the counts by file as text, how many mutants are neither killed nor equivalent)."""
    rows, totals = ["file | mutants | killed | equivalent | left"], [0, 0, 0, 0]
    for file in files:
        mutants, listed = mutants_of((ROOT / file).read_text()), equivalents().get(file, [])
        equivalent = [m for m in mutants if any(e.covers(m) for e in listed)]
        killed = [m for m in mutants if m not in equivalent and state.of(file, m) == "killed"]
        counts = [len(mutants), len(killed), len(equivalent), len(mutants) - len(killed) - len(equivalent)]
        rows.append(" | ".join([file, *map(str, counts)]))
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        unused = [e.line for e in listed if not any(e.covers(m) for m in mutants)]
        rows += [f"    no longer a mutant: {line}" for line in unused]
    return "\n".join([*rows, " | ".join(["all", *map(str, totals)])]), totals[-1]


@guarded
def main(argv: list[str] | None = None) -> int:
    """The exit code: 1 when a mutant is left."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="default: all of TESTS")
    parser.add_argument("--jobs", type=int, default=2, help="files at once (default: 2)")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("mutation_check.json"),
        help="where results are kept (default: here)",
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args(argv)
    check_bounds(args, jobs=COUNT)
    unknown = [file for file in args.files if file not in TESTS]
    if unknown:
        parser.error(f"{unknown[0]} has no tests in TESTS; there are {', '.join(TESTS)}")
    check_file(args.state, "--state", (".json",), lambda file: isinstance(json.loads(file.read_text()), dict))
    files, state = args.files or list(TESTS), State(args.state)
    if args.list:
        for file in files:
            for m in mutants_of((ROOT / file).read_text()):
                print(f"{file}:{m.line}: {m.before}\n    {m.after}")
        return 0
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda file: check(file, state), files))
    text, left = table(files, state)
    print(text)
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
