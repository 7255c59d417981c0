"""Sections of checks: a failure, a hang or a killed process costs one check and not the others."""

import functools
import os
import signal
import time

import pytest
import torch

from engram.scripts.bench import check_runner, gpu_check
from engram.scripts.bench.check_runner import Check, Finding, Outcome, Section, SkippedCheck, run_section

CPU = torch.device("cpu")


def passes() -> Finding:
    return Finding("fine", {"pid": os.getpid()})


def fails() -> Finding:
    raise ValueError("not so | fine\nat all")


def does_not_apply() -> Finding:
    raise SkippedCheck("no such device")


def lacks_a_package() -> Finding:
    import a_package_that_nobody_has  # noqa: F401

    return Finding("")


def dies() -> Finding:
    os.kill(os.getpid(), signal.SIGKILL)
    return Finding("")


def hangs() -> Finding:
    signal.pause()
    return Finding("")


def outcomes(*runs, budget_s: float = 60.0) -> list[Outcome]:
    checks = [Check(f"{i} {run.__name__}", run) for i, run in enumerate(runs)]
    return list(run_section(Section("s", "a section", budget_s, checks), budget_s))


@pytest.mark.parametrize(
    ("run", "status", "text"),
    [
        (fails, "failed", "ValueError: not so | fine at all (test_check_runner.py:"),
        (dies, "failed", "its process ended with code -9"),
        (does_not_apply, "skipped", "no such device"),
        (lacks_a_package, "skipped", "needs a_package_that_nobody_has"),
    ],
)
def test_what_does_not_pass_says_why_and_the_next_check_is_made(run, status, text):
    before, middle, after = outcomes(passes, run, passes)
    assert (before.status, middle.status, after.status) == ("passed", status, "passed")
    assert middle.text.startswith(text)
    renewed = before.numbers["pid"] != after.numbers["pid"]
    assert renewed == (status == "failed"), "a failed check's process is not used again, others' are"
    assert before.numbers["pid"] != os.getpid()


def test_a_section_ends_when_its_time_is_over():
    first, hanging, *late = outcomes(passes, hangs, passes, passes, budget_s=2.0)
    assert first.status == "passed"
    assert hanging.status == "failed" and "not done after" in hanging.text
    assert [(row.status, row.text) for row in late] == [("skipped", "the section's 2 s were over")] * 2


def test_a_check_that_comes_late_in_its_section_is_not_called_a_failure(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    section = Section("s", "a section", 10.0, [Check("late", passes)])
    for started, status in ((98.0, "skipped"), (91.0, "failed")):
        assert check_runner.cut_off(section, section.checks[0], started, 10.0).status == status


def test_the_table_joins_checks_alike_and_escapes():
    rows = [Outcome("s", "a", "passed", "trains"), Outcome("s", "b", "passed", "trains")]
    rows += [Outcome("s", "c", "failed", "x | y\nz")]
    text = gpu_check.table([Section("s", "all", 1, [])], rows)
    assert "| a; b | passed | trains |" in text and "| c | failed | x \\| y z |" in text
    assert "2 passed, 1 failed, 0 skipped" in text


def section_of(*runs):
    return lambda device, quick: [Check(run.__name__, functools.partial(run)) for run in runs]


def test_without_the_device_nothing_else_is_tried(tmp_path, capsys):
    assert gpu_check.main(["--device", "cuda:97", "--out", str(tmp_path)]) == 1
    assert "this machine has no CUDA device" in capsys.readouterr().out
    assert "methods" not in (tmp_path / "gpu_check.md").read_text()


@pytest.mark.parametrize(("second", "code"), [(does_not_apply, 0), (fails, 1)])
def test_files_are_written_after_every_section_and_the_exit_code_tells(
    second, code, tmp_path, monkeypatch, capsys
):
    seen = []
    sections = [("one", "first", 60, section_of(passes)), ("two", "second", 60, section_of(second, passes))]
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    monkeypatch.setattr(torch.cuda, "is_available", None)  # which would keep forks from using CUDA
    own_write = gpu_check.write

    def write(*args, complete: bool) -> None:
        own_write(*args, complete=complete)
        seen.append((complete, (tmp_path / "out" / "gpu_check.json").read_text()))

    monkeypatch.setattr(gpu_check, "write", write)
    assert gpu_check.main(["--device", "cpu", "--out", str(tmp_path / "out")]) == code
    assert [complete for complete, _ in seen] == [False, True]
    assert '"one"' in seen[0][1] and '"two"' not in seen[0][1]
    said = capsys.readouterr().out
    assert f"{second.__name__}: {'no such device' if code == 0 else 'ValueError'}" in said
    assert said.splitlines()[-1].startswith(f"2 passed, {code} failed, {1 - code} skipped; written: ")


def test_every_file_with_tests_of_a_gpu_is_a_check():
    names = [check.name for check in gpu_check.test_checks(CPU, quick=False)]
    assert names == sorted(names)
    assert {"tests/contract/test_gpu.py", "tests/integration/test_compile.py"} <= set(names)
