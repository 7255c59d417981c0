"""Killed at any step and resumed, a run ends with the same R, bit for bit."""

import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engram import main as program
from engram.models.method import Method
from engram.models.parts.first_task import FirstTaskAdaptation
from engram.utils.config import registry
from engram.utils.training.trainer import Trainer
from tests.conftest import ROOT, methods_with_code, random_draws
from tests.waiting import LIMIT

pytestmark = pytest.mark.slow


def class_of(model: str) -> type[Method]:
    return registry.plugin_class(registry.load("models", model), Method)


# The others take no step in which they could be killed.
MODELS = [name for name in methods_with_code() if class_of(name).takes_steps]
FLAGS = ["--dataset", "seq-digits", "--disable_log", "--n_epochs", "2", "--batch_size", "40"]
# Where the method's cost would make the test slow in spite of its `quick_flags`, or it needs more flags.
EXTRA = {
    "mer": ["--minibatch_size", "3", "--batches_per_example", "1", "--n_epochs", "1"],
    "pnn": ["--multi_head"],  # not defined for class-il, as the next two
    "independent": ["--multi_head"],
    "taskinput": ["--multi_head"],
}


def flags_of(model: str) -> list[str]:
    quick = dict(class_of(model).quick_flags)
    if class_of(model).needs_vit:
        importlib.import_module("timm")  # here once, not in every child
        quick["n_epochs"] = 1
    flags = [f"--{name}={value}" for name, value in quick.items()]
    return ["--model", model, *FLAGS, *flags, *EXTRA.get(model, [])]


def in_child(flags: list[str], die_at: int | None = None) -> int:
    """Run the program in a forked process, which kills itself with SIGKILL at training step `die_at`."""

    def child():
        if die_at is not None:
            after_step = Trainer._between_steps

            def dying(self, *args):
                if self.position.total >= die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                after_step(self, *args)

            Trainer._between_steps = dying
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(program.main(flags))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(LIMIT)
    return process.exitcode


def only_run(folder: Path) -> Path:
    (found,) = folder.glob("*/*/*")
    return found


def measured(run: Path) -> dict:
    document = json.loads((run / "results.json").read_text())
    assert document["status"] == "finished"
    kept = {view: document[view] for view in ("class_il", "task_il")}
    return kept | {"b": document["b"], "fwt": document["fwt"], "class_order": document["class_order"]}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("model", MODELS)
def test_sigkill_at_a_random_step_changes_nothing(model, folder):
    n_tasks = 1 if class_of(model).stream == "joint" else 5
    epochs = 1 if "--n_epochs" in EXTRA.get(model, []) or class_of(model).needs_vit else 2
    steps = epochs * 38 if n_tasks > 1 else epochs * 36
    if issubclass(class_of(model), FirstTaskAdaptation):
        steps = epochs * 7  # of the first task
    die_at = random_draws(f"kill {model}").randrange(2, steps)
    whole, killed = folder / "whole", folder / "killed"
    assert in_child([*flags_of(model), "--output_dir", str(whole)]) == 0
    saving = ["--checkpoint_every", "0.0003"]  # about every 18 ms: the kill falls between two checkpoints
    assert in_child([*flags_of(model), *saving, "--output_dir", str(killed)], die_at) == -signal.SIGKILL
    run = only_run(killed)
    assert in_child(["--resume", str(run)]) == 0
    assert measured(run) == measured(only_run(whole)), f"killed at step {die_at}"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("die_at", [11, 15, 16, 40])
def test_sigkill_with_a_number_of_steps(die_at, folder):
    """--n_iters 15 ends tasks inside their second pass; a kill there, or at a task's end, changes nothing."""
    flags = [*flags_of("si"), "--n_iters", "15", "--checkpoint_every", "0"]
    whole, killed = folder / "whole", folder / "killed"
    assert in_child([*flags, "--output_dir", str(whole)]) == 0
    assert in_child([*flags, "--output_dir", str(killed)], die_at) == -signal.SIGKILL
    run = only_run(killed)
    assert in_child(["--resume", str(run)]) == 0
    assert measured(run) == measured(only_run(whole))


def test_resume_by_id_and_of_a_finished_run(folder, capsys):
    assert program.main([*flags_of("er"), "--output_dir", str(folder)]) == 0
    run = only_run(folder)
    before = measured(run)
    capsys.readouterr()
    assert program.main(["--resume", run.name, "--output_dir", str(folder)]) == 0
    assert measured(run) == before
    assert capsys.readouterr().out.splitlines()[-1] == f"results: {run}/results.json"


# Runs main.py, which gets signal argv[1] after training step argv[2].
SIGNALLED = """
import os, sys
from engram import main
from engram.utils.training.trainer import Trainer
number, step, after_step = int(sys.argv[1]), int(sys.argv[2]), Trainer._between_steps
def signalled(self, *args):
    if self.position.total == step:
        os.kill(os.getpid(), number)
    after_step(self, *args)
Trainer._between_steps = signalled
sys.exit(main.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_continue(number, code, folder):
    """In the second task."""
    flags = [*flags_of("er"), "--checkpoint_every", "60", "--output_dir", str(folder)]
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), "20", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT)
    out, err = done.stdout, done.stderr
    assert done.returncode == code, err
    log = only_run(folder) / "results.json"
    assert re.search(r"continue with\n  python main.py --resume \S+", err)
    document = json.loads(log.read_text())
    assert document["status"] == "interrupted" and document["class_il"]["R"][0][0] is not None
    assert document["class_il"]["R"][1][0] is None
    assert out.splitlines()[-1] == f"results: {log}"
    assert (log.parent / "checkpoint.pt").exists()


KEPT = ["--optimizer", "adam", "--lr", "0.001", "--keep_optimizer"]


@pytest.mark.parametrize("extra", [[], KEPT, [*KEPT, "--multi_head"]], ids=["new", "kept", "heads"])
def test_stop_after_stops_in_good_order_and_the_rest_is_as_if_it_had_not(extra, folder, capsys):
    whole, parts = folder / "whole", folder / "parts"
    flags = [*flags_of("mas"), *extra]
    assert program.main([*flags, "--output_dir", str(whole)]) == 0
    assert program.main([*flags, "--stop_after", "1", "--output_dir", str(parts)]) == 0
    run, said = only_run(parts), capsys.readouterr()
    document = json.loads((run / "results.json").read_text())
    assert document["status"] == "stopped" and said.out.splitlines()[-1] == f"results: {run}/results.json"
    assert [row[0] is not None for row in document["class_il"]["R"]] == [True] + [False] * 4
    assert "stopped after 1 of its tasks (--stop_after): checkpoint saved; continue with" in said.err
    assert f"  python main.py --resume {run}\n" in said.err
    assert program.main(["--resume", str(run), "--stop_after", "3"]) == 0
    assert json.loads((run / "results.json").read_text())["status"] == "stopped"
    assert program.main(["--resume", str(run)]) == 0
    assert measured(run) == measured(only_run(whole))


@pytest.mark.parametrize("n", ["5", "7"])
def test_stop_after_the_last_task_is_the_end(n, folder):
    assert program.main([*flags_of("sgd"), "--stop_after", n, "--output_dir", str(folder)]) == 0
    measured(only_run(folder))
