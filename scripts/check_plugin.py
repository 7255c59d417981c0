"""Put a method, benchmark or backbone of your own through the tests that every one of the project's passes.

    python scripts/check_plugin.py my_method.py
    python scripts/check_plugin.py my_package.my_data --kind benchmark

Prints a line for each test: what passed, and what failed with the reason and the line of your file. The tests
lie in tests/contract of the repository, so it works in a clone and not in an installed copy. Exit code 1:
something failed.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from engram.utils.config import registry
from engram.utils.config.flags import CheckedParser
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.terminal import say_start

KINDS = {"method": "models", "benchmark": "datasets", "backbone": "backbones"}
PARAMETERS = {"models": "model", "datasets": "dataset", "backbones": "backbone"}  # of the tests of a kind


class Report:
    """A plugin of pytest: keeps the tests of one plugin and prints a readable line for each."""

    def __init__(self, kind: str, name: str, path: Path):
        self.kind, self.name, self.path = kind, name, path
        self.n_passed = self.n_failed = 0

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out the tests that are not about the plugin."""
        items[:] = [item for item in items if self._is_about_it(item)]

    def _is_about_it(self, item: Any) -> bool:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        return self.name in values

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One line for each test, and the reason below one that failed."""
        if report.when == "call" and report.passed:
            self.n_passed += 1
            print(f"passed  {self._sentence(report.nodeid)}", flush=True)
        elif report.failed:
            self.n_failed += 1
            print(f"FAILED  {self._sentence(report.nodeid)}")
            for line in self._reasons(report.longrepr):
                print(f"        {line}", flush=True)

    def pytest_collectreport(self, report: Any) -> None:
        """What keeps the tests from being read, which is mostly the plugin."""
        if report.failed:
            self.n_failed += 1
            print(f"FAILED  {Path(report.nodeid).stem} cannot begin: {str(report.longrepr).splitlines()[-1]}")

    def _sentence(self, node: str) -> str:
        """The name and the case of a test, `test_the_seed_matters[FILE-class-il]`, as words."""
        name, _, rest = node.rpartition("::")[2].partition("[")
        words = name.removeprefix("test_").replace("_", " ")
        case = rest.removesuffix("]").replace(self.name, "").strip("-")
        return f"{words} ({case})" if case else words

    def _reasons(self, failure: Any) -> Iterator[str]:
        """The error, and the last line of the plugin's file that led to it."""
        crash = getattr(failure, "reprcrash", None)
        if crash is None:
            yield str(failure).splitlines()[-1]
            return
        yield " ".join(str(crash.message).split())[:300]
        entries = [entry.reprfileloc for entry in failure.reprtraceback.reprentries if entry.reprfileloc]
        of_file = [location for location in entries if Path(location.path).resolve() == self.path]
        if of_file:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            number = of_file[-1].lineno
            yield f"{self.path.name}, line {number}: {lines[number - 1].strip()}"


def kind_of(module: Any) -> str:
    """The kind of plugin that a module is, by what it defines."""
    if hasattr(module, "DEFAULTS"):
        return "benchmark"
    return "backbone" if hasattr(module, "build") else "method"


def _refuse_without_method(module: ModuleType) -> None:
    """Raise `UserError` for a file that defines no method, which no test could be about."""
    from engram.models.method import Method  # imports torch, which --help does without

    registry.plugin_class(module, Method)


def check(given: str, chosen: str | None) -> int:
    """Run the tests of one plugin and print what they say; returns the exit code."""
    import pytest  # a developer's package; an installed copy has no tests

    kind = KINDS[chosen or kind_of(registry.load("models", given))]
    module, name = registry.load(kind, given), registry.canonical(kind, given)
    if kind == "models":
        _refuse_without_method(module)
    path = Path(str(module.__file__)).resolve()
    report = Report(kind, name, path)
    print(f"{path}, a {registry.WORDS[kind]}:")
    options = ["-pno:terminal", "-pno:cacheprovider", "-pno:xdist", "-oaddopts="]
    folder = registry.ROOT / "tests" / "contract"
    pytest.main([*options, f"--rootdir={registry.ROOT}", f"--plugin={kind}:{name}", str(folder)], [report])
    print(f"{report.n_passed} passed, {report.n_failed} failed")
    if not report.n_passed + report.n_failed:
        raise UserError(f"{given}: no test was found for it; say what it is with --kind")
    return 1 if report.n_failed else 0


@guarded
def main(argv: list[str] | None = None) -> int:
    """Check the plugin that the command line names; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", help="a file or a module, as --model takes it; or a name of --list")
    parser.add_argument("--kind", choices=tuple(KINDS), help="what it is (default: by what it defines)")
    args = parser.parse_args(argv)
    if not (registry.ROOT / "tests" / "contract").is_dir():
        raise UserError("the tests are not part of an installed copy; clone the repository to check a plugin")
    if importlib.util.find_spec("pytest") is None:
        raise UserError("pytest is not installed: pip install -e '.[dev]'")
    say_start(f"checking {args.plugin}: loading PyTorch and the tests")
    return check(args.plugin, args.kind)


if __name__ == "__main__":
    sys.exit(main())
