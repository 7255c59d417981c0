"""The studies of scripts/reproduce/: what each would start is printed, and main.py takes every command."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from engram.scripts import sweep
from engram.utils.config.cli import parse
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "scripts" / "reproduce"
# Script and arguments → runs that it prints for the seeds 0 and 1, audit.sh and prompts.sh for 0 (_small: the
# encoder's).
STUDIES = {
    "audit.sh": 16,
    "intervention.sh scores.npz": 2 * 3 * (1 + 3 * 2),
    "maer.sh cifar10-mlp": 2 * (3 * 4 + 1),
    "maer.sh cifar10-narrow": 2 * (10 * 4 + 1),
    "maer.sh digits": 2 * (7 * 5 + 1),
    "mas_split_mnist.sh": 2 * 2,
    "mas_tinyimagenet.sh": 2,
    "mer_examples.sh 0": 63,
    "mnist.sh": 2 * 12,
    "pretrained.sh": 2 * (8 + 3 + 3),
    "prompts.sh": 39,
    "prompts_small.sh": 1 + 2 * 2,
    "rehearsal.sh": 2 * 3 * (4 + 3) + 2 * 2,
    "scenarios.sh all": 2 * 3 * 19,
    "scenarios.sh all tune": None,
    "scenarios.sh perm-small": 2 * 3 * 6,
}


SWEEP = "sweep.py called with: "
# This one has a process of its own for sweep.py, as a user has it. Calls by the others are made here: each
# would import torch again, which takes as long as all the rest.
AS_USED = "prompts.sh"


def dry_run(study: str, folder) -> subprocess.CompletedProcess[str]:
    """What the script does; its calls of sweep.py are lines that say with what, but for `AS_USED`."""
    environment = {**os.environ, "DRY_RUN": "1", "SEEDS": "0 1", "OUTPUT_DIR": str(folder / "out")}
    if study == "maer.sh cifar10-narrow":
        environment |= {"SCORES": "scores.npy", "SHARE": "0.1", "EPOCHS": "8"}
    if study == "maer.sh cifar10-mlp":
        environment |= {"SCORES": "scores.npy", "SHARE": "0.1", "ARMS": "given"}
    if study == "rehearsal.sh":  # one of its four benchmarks
        environment["ONLY"] = "mnist-360"
    if study in ("audit.sh", AS_USED):  # to read a command of a transformer takes a third of a second
        environment["SEEDS"] = "0"
    if study != AS_USED:
        python = folder / "python"
        python.write_text(
            f'#!/usr/bin/env bash\n[ "$1" = scripts/sweep.py ] || exec "{sys.executable}" "$@"\n'
            f'echo "{SWEEP}$(printf "%q " "${{@:2}}")"\n'
        )
        python.chmod(0o755)
        environment["PYTHON"] = str(python)
    command = [str(FOLDER / study.split()[0]), *study.split()[1:]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def printed(line: str, capsys) -> list[str]:
    """The lines of a dry run that stand for one of the script's: those of sweep.py where it calls that."""
    if not line.startswith(SWEEP):
        return [line]
    assert sweep.main(shlex.split(line.removeprefix(SWEEP))) == 0
    return capsys.readouterr().out.splitlines()


def test_every_study_is_listed_above():
    names = {path.name for path in FOLDER.glob("*.sh")} - {"common.sh", "one_run.sh"}
    assert {study.split()[0] for study in STUDIES} == names


@pytest.mark.parametrize("study", STUDIES)
def test_a_dry_run_prints_commands_that_main_takes_and_starts_nothing(study, tmp_path, monkeypatch, capsys):
    done = dry_run(study, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(ROOT)
    lines = [line for given in done.stdout.splitlines() for line in printed(given, capsys)]
    commands = [line for line in lines if re.match(r"\S*python main\.py ", line)]
    assert commands and STUDIES[study] in (None, len(commands))
    assert len(set(commands)) == len(commands), "a run would be made twice"
    for command in commands:
        assert parse(shlex.split(command)[2:]).config.run.model
    assert {path.name for path in tmp_path.iterdir()} <= {"python"}


def test_what_is_finished_is_left_out(tmp_path):
    (tmp_path / "out" / "lr0.01-seed0" / "seq-mnist" / "mas" / "0").mkdir(parents=True)
    result = tmp_path / "out" / "lr0.01-seed0" / "seq-mnist" / "mas" / "0" / "results.json"
    result.write_text('{"status": "finished"}')
    done = dry_run("mas_split_mnist.sh", tmp_path)
    assert len(done.stdout.splitlines()) == 3 and "finished before: " in done.stderr


def test_a_study_without_its_argument_says_how_to_call_it():
    for script in ("intervention.sh", "mer_examples.sh"):
        done = subprocess.run([str(FOLDER / script)], capture_output=True, text=True, check=False)
        assert done.returncode and f"usage: scripts/reproduce/{script}" in done.stderr
