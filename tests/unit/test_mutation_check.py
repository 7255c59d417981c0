"""The mutation check: which mistakes it makes, that tests are run against them, and what it reports."""

import json

import pytest
import yaml

from engram.scripts.dev import mutation_check
from engram.scripts.dev.mutants import mutants_of

SOURCE = '''
"""A module; 1 + 1 in its text is no code."""

LIMIT: int = 3


class Counter:
    """Counts."""

    step = 2

    def count(self, n: int, twice: bool = False) -> float:
        """Not mutated: 5 < 6."""
        if n < 0 or n > LIMIT:
            raise ValueError(f"{n + 1} is too many")
        n += self.step
        return float(-n * 2 if twice else n)
'''
SUMS = """
FACTOR = 2


def weighted(a, b):
    total = a * 1 + FACTOR * b
    return total
"""
BY_ONE = {"line": "total = a * 1 + FACTOR * b", "mutant": "total = (a / 1) + FACTOR * b", "why": "by one"}
TEST = """
from engram.sums import weighted, FACTOR

def test_weighted():
    assert weighted(2, 3) == 8 and FACTOR == 2
"""


def test_every_kind_of_mistake_is_made_once():
    changes = {(m.line, m.before, m.after) for m in mutants_of(SOURCE)}
    condition, last = "if n < 0 or n > LIMIT:", "return float(-n * 2 if twice else n)"
    default = "def count(self, n: int, twice: bool = False) -> float:"
    assert changes == {
        (4, "LIMIT: int = 3", "LIMIT: int = 4"), (4, "LIMIT: int = 3", "LIMIT: int = 2"),
        (10, "step = 2", "step = 3"), (10, "step = 2", "step = 1"), (10, "step = 2", "pass"),
        (12, default, default.replace("False", "True")),
        (14, condition, "if (n < 0 and n > LIMIT):"),
        (14, condition, "if n <= 0 or n > LIMIT:"), (14, condition, "if n >= 0 or n > LIMIT:"),
        (14, condition, "if n < 1 or n > LIMIT:"), (14, condition, "if n < (-1) or n > LIMIT:"),
        (14, condition, "if n < 0 or n >= LIMIT:"), (14, condition, "if n < 0 or n <= LIMIT:"),
        (15, 'raise ValueError(f"{n + 1} is too many")', "pass"),
        (16, "n += self.step", "pass"),
        (17, last, "return None"), (17, last, "return -n * 2 if twice else n"),
        (17, last, "return float(-n * 2 if not twice else n)"),
        (17, last, "return float((-n / 2) if twice else n)"),
        (17, last, "return float((n) * 2 if twice else n)"),
        (17, last, "return float(-n * 3 if twice else n)"),
        (17, last, "return float(-n * 1 if twice else n)"),
    }  # fmt: skip


def test_a_change_is_known_by_its_function_and_its_lines():
    mutants = mutants_of(SOURCE)
    assert {m.function for m in mutants if m.line >= 14} == {"Counter.count"}
    assert {m.function for m in mutants if m.line < 14} == {None}, "these need a new import"
    assert len({m.name for m in mutants}) == len(mutants)
    assert {m.name for m in mutants_of("\n\n" + SOURCE)} == {m.name for m in mutants}
    twice = mutants_of("def f(x):\n    return x[1 - 1 - 1]\n")
    assert len({m.name for m in twice}) == len(twice) == 9


def test_a_line_with_letters_of_two_bytes():
    (mutant,) = (m for m in mutants_of('Ω = "Σ"; é = 1 + 2\n') if "-" in m.after)
    assert mutant.source == 'Ω = "Σ"; é = (1 - 2)\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one module and one test of it."""
    files = {
        "engram.py": "__path__ = [__file__.removesuffix('/engram.py')]\n",
        "sums.py": SUMS,
        "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['.']\n",
        "tests/test_sums.py": TEST,
        mutation_check.SERVER: (mutation_check.ROOT / mutation_check.SERVER).read_text(),
        "equivalent.yaml": yaml.safe_dump(
            {"sums.py": [BY_ONE, {"line": "gone", "why": "it was there once"}]}
        ),
    }
    root = tmp_path / "project"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    mutation_check.subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.setattr(mutation_check, "ROOT", root)
    monkeypatch.setattr(mutation_check, "EQUIVALENT", root / "equivalent.yaml")
    monkeypatch.setattr(mutation_check, "TESTS", {"sums.py": ["tests/test_sums.py"]})
    return root


@pytest.mark.slow
def test_mutants_are_killed_or_listed_and_nothing_is_tried_twice(project, monkeypatch, capsys):
    state = project.parent / "state.json"
    source = (project / "sums.py").read_text()
    assert mutation_check.main(["--state", str(state)]) == 0
    n = len(mutants_of(source))
    told = capsys.readouterr().out
    assert f"sums.py | {n} | {n - 1} | 1 | 0" in told and "no longer a mutant: gone" in told
    assert set(json.loads(state.read_text())["sums.py"].values()) == {"killed"}
    assert (project / "sums.py").read_text() == source
    monkeypatch.setattr(mutation_check, "server", None)
    assert mutation_check.main(["--state", str(state)]) == 0


@pytest.mark.slow
def test_survivors_are_shown_and_tried_again_when_tests_were_added(project, capsys):
    state = project.parent / "state.json"
    test = project / "tests/test_sums.py"
    test.write_text(TEST.replace("weighted(2, 3) == 8 and FACTOR", "weighted(0, 3) == 6 and FACTOR"))
    assert mutation_check.main(["--state", str(state)]) == 1
    told = capsys.readouterr().out
    assert "sums.py:6: total = a * 1 + FACTOR * b\n    survived: total = a * 2 + FACTOR * b" in told
    assert told.rstrip().endswith(" | 2")
    test.write_text(TEST)
    assert mutation_check.main(["--state", str(state)]) == 0


@pytest.mark.slow
def test_tests_that_fail_by_themselves_and_unknown_files_are_refused(project, capsys):
    (project / "tests/test_sums.py").write_text("def test_never():\n    assert False\n")
    with pytest.raises(SystemExit, match="fail without a mutant"):
        mutation_check.main(["--state", str(project.parent / "state.json")])
    with pytest.raises(SystemExit):
        mutation_check.main(["other.py"])
    assert "other.py has no tests in TESTS" in capsys.readouterr().err
