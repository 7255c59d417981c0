"""Seeded faults: odd flags and damaged files never show a traceback, are never accepted, lose nothing.

scripts/dev/fuzz.py runs thousands of such trials; TEST_SEED=7 draws others here, FUZZ_TRIALS=300 more. Each
program runs in a fork of a process that has imported everything: three trials take a second of a processor.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engram.scripts.dev import fuzz_files, fuzz_flags, fuzz_trial
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("TEST_SEED", 0))
N_TRIALS = int(os.environ.get("FUZZ_TRIALS", 24))  # of both kinds


def run_fuzz(*flags: str) -> subprocess.CompletedProcess:
    """The script in a process of its own: what it imports and patches stays there."""
    command = [sys.executable, str(ROOT / "scripts" / "dev" / "fuzz.py"), "--seed", str(SEED), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_seeded_trials_of_both_kinds():
    done = run_fuzz("--trials", str(N_TRIALS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{N_TRIALS} trials, 0 failures, seed {SEED}")


# --- the fuzz can fail ----------------------------------------------------------------------------


def outcome(code: int = 0, out: str = "", err: str = "", asked: bool = False) -> fuzz_trial.Outcome:
    return fuzz_trial.Outcome(code, out, err, asked)


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (outcome(70, err="error: KeyError (details: x)"), "exit code 70"),
        (outcome(-9), "exit code -9"),
        (outcome(-15), "exit code -15"),
        (outcome(0, err="Traceback (most recent call last):\n  x"), "a traceback"),
        (outcome(2), "without a word"),
    ],
)
def test_an_outcome_that_no_program_may_have(ended, fault, tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    assert any(fault in wrong for wrong in fuzz_trial.faults(ended, tmp_path / "work"))


def test_a_good_outcome_and_what_is_left_over(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    assert fuzz_trial.faults(outcome(2, err="error: x"), tmp_path / "work") == []
    assert fuzz_trial.faults(outcome(-15, asked=True), tmp_path / "work") == []
    (tmp_path / "work" / "checkpoint.tmp").touch()
    assert fuzz_trial.faults(outcome(), tmp_path / "work") == ["left over: work/checkpoint.tmp"]


def test_a_program_that_computes_for_ever_is_asked_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_trial, "CPU_SECONDS", 1)
    (tmp_path / "work").mkdir()

    def forever() -> None:
        while True:
            pass

    ended = fuzz_trial.in_fork(forever, tmp_path / "work")
    assert ended.code == -15 and ended.asked_to_end
    assert fuzz_trial.faults(ended, tmp_path / "work") == []


def test_another_result_from_a_damaged_file_is_a_fault(tmp_path):
    reader = fuzz_files.Reader(lambda: 0, ("x",), lambda work, ended: 2)
    assert fuzz_files.FileFuzz._accepted(reader, tmp_path, outcome(), 2) == []
    assert "another result" in fuzz_files.FileFuzz._accepted(reader, tmp_path, outcome(), 3)[0]


def test_flags_are_those_of_the_help():
    flags = dict(fuzz_flags.flags_of("main er"))
    assert flags["buffer_size"] == "N" and flags["lr"] == "X" and flags["images"] == "auto|memory|disk"
    assert dict(fuzz_flags.flags_of("train_splits"))["subset_ratio"] == "X"
    assert "dry_run" in dict(fuzz_flags.flags_of("sweep"))


def test_every_program_of_the_memorization_room_is_drawn():
    programs = {
        path.stem for path in Path(ROOT, "memorization").glob("*.py") if "cli.main(" in path.read_text()
    }
    assert set(fuzz_flags.OUTPUTS) == programs - {"cli"}


def test_legal_flags_that_only_cost_time_are_bounded():
    assert fuzz_flags.bounded("coreset_steps", "65536") == "10"
    for flag, value in (
        ("coreset_steps", "3"),
        ("coreset_steps", str(2**31)),
        ("coreset_steps", "x"),
        ("lr", "99"),
    ):
        assert fuzz_flags.bounded(flag, value) == value


def test_half_of_the_damages_are_flipped_bits():
    assert 2 * fuzz_files.DAMAGES.count("flipped") == len(fuzz_files.DAMAGES)
