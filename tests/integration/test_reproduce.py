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
    "scenarios.sh all": 2 * 3 * 20,
    "scenarios.sh all tune": None,
    "scenarios.sh perm-small": 2 * 3 * 6,
}


SWEEP = "sweep.py called with: "
# This one has a process of its own for sweep.py, as a user has it. Calls by the others are made here: each
# would import torch again, which takes as long as all the rest.
AS_USED = "prompts.sh"


def dry_run(study: str, folder, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the script does; its calls of sweep.py are lines that say with what, but for `AS_USED`."""
    environment = {"DRY_RUN": "1", "SEEDS": "0 1", "OUTPUT_DIR": str(folder / "out")}
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
    environment = os.environ | environment | variables
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
    commands = [line for line in lines if line.startswith("python main.py ")]
    assert not any(str(tmp_path / "python") in line for line in lines), "every line names python alone"
    assert commands and STUDIES[study] in (None, len(commands))
    assert len(set(commands)) == len(commands), "a run would be made twice"
    for command in commands:
        assert parse(shlex.split(command)[2:]).config.run.model
        flags = re.findall(r" (--\w+)", command)
        assert len(set(flags)) == len(flags), f"a flag stands there twice: {command}"
    assert {path.name for path in tmp_path.iterdir()} <= {"python"}


def test_what_is_finished_is_left_out(tmp_path):
    (tmp_path / "out" / "lr0.01-seed0" / "seq-mnist" / "mas" / "0").mkdir(parents=True)
    result = tmp_path / "out" / "lr0.01-seed0" / "seq-mnist" / "mas" / "0" / "results.json"
    result.write_text('{"status": "finished"}')
    done = dry_run("mas_split_mnist.sh", tmp_path)
    assert len(done.stdout.splitlines()) == 3 and "finished before: " in done.stderr


@pytest.mark.parametrize("study", ["mnist.sh", "intervention.sh scores.npz"])
def test_runs_of_these_are_left_to_the_sweep_which_skips_finished_ones(study, tmp_path):
    lines = dry_run(study, tmp_path).stdout.splitlines()
    assert all(line.startswith((SWEEP, "python -m memorization.intervention ")) for line in lines)


@pytest.mark.parametrize(("seeds", "n_files"), [("0 1", 2), ("12 7", 13)])
def test_every_seed_finds_its_random_choice(seeds, n_files, tmp_path):
    done = dry_run("intervention.sh scores.npz", tmp_path, SEEDS=seeds)
    assert f" --n_random {n_files} " in done.stdout
    assert {int(seed) for seed in re.findall(r"random_5_(\d+)", done.stdout)} == set(map(int, seeds.split()))


def with_python(script: str, study: str, folder) -> subprocess.CompletedProcess[str]:
    """What the study does where this script stands for the interpreter; two runs of it."""
    python = folder / "python"
    python.write_text(f"#!/usr/bin/env bash\n{script}\n")
    python.chmod(0o755)
    variables = {"PYTHON": str(python), "OUTPUT_DIR": str(folder / "out"), "SEEDS": "0"}
    variables["ONLY"] = "task-il-(ewc|si)$" if study == "scenarios.sh split" else "rotations-(online|ewc)"
    command = [str(FOLDER / study.split()[0]), *study.split()[1:]]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("study", ["mas_split_mnist.sh", "mer_examples.sh 0", "scenarios.sh split"])
def test_a_study_whose_runs_fail_says_why_and_fails(study, tmp_path):
    failing, passing = 'echo start; echo "error: no space left" >&2; exit 2', "echo results: here"
    done = with_python(failing, study, tmp_path)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("FAILED: error: no space left\n  python main.py --") == 2
    once = f"mkdir {tmp_path / 'taken'} 2>/dev/null && {passing} || {{ {failing}; }}"
    done = with_python(once, study, tmp_path)
    assert done.returncode == 1 and done.stdout.count("FAILED") == 1, "one of two"
    done = with_python(passing, study, tmp_path)
    assert done.returncode == 0 and done.stdout == "results: here\n" * 2


@pytest.mark.parametrize("script", ["intervention.sh", "maer.sh", "mer_examples.sh"])
@pytest.mark.parametrize("dry", ["", "1"])
def test_a_study_without_its_argument_says_how_to_call_it(script, dry):
    environment = os.environ | {"DRY_RUN": dry}
    done = subprocess.run(
        [str(FOLDER / script)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: scripts/reproduce/{script} ") and done.stderr.count("\n") == 1


def test_maer_says_which_file_it_needs(tmp_path):
    done = dry_run("maer.sh cifar10-mlp", tmp_path, SCORES="")
    assert done.returncode == 2 and done.stderr.startswith("cifar10-mlp needs SCORES=FILE, ")
