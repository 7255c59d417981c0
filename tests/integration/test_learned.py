"""Going on from what was learned: --start_from and --inference_only with --loadcheck."""

import json
from pathlib import Path

import numpy as np
import pytest

from engram import main as program

FLAGS = ("--disable_log", "--device", "cpu", "--n_tasks", "3", "--batch_size", "32")


@pytest.fixture
def run(folder, capsys):
    """Call the program: (its results or None, its folder or None, what it said of an error)."""

    def call(*flags: str) -> tuple[dict | None, Path | None, str]:
        program.main([*FLAGS, *flags, "--output_dir", str(folder / "runs")])
        said = capsys.readouterr()
        lines = [line for line in said.out.splitlines() if line.startswith("results: ")]
        path = Path(lines[-1].removeprefix("results: ")) if lines else None
        return (json.loads(path.read_text()) if path else None), path and path.parent, said.err

    return call


def matrix(results: dict) -> np.ndarray:
    """R of a run's task-IL view, NaN where nothing was measured."""
    return np.array(results["task_il"]["R"], dtype=float)


def test_a_run_that_starts_from_a_checkpoint_learns_what_the_whole_run_does(run):
    whole = matrix(run("--model", "er", "--buffer_size", "50")[0])
    _, stopped, _ = run("--model", "er", "--buffer_size", "50", "--stop_after", "1")
    checkpoint = str(stopped / "checkpoint.pt")
    rest, folder, _ = run(
        "--model", "er", "--buffer_size", "50", "--loadcheck", checkpoint, "--start_from", "1"
    )
    assert np.isnan(matrix(rest)[0]).all() and np.array_equal(matrix(rest)[1:], whole[1:])
    assert rest["status"] == "finished" and (folder / "checkpoint.pt").exists()
    wrong = run("--model", "er", "--buffer_size", "50", "--loadcheck", checkpoint, "--start_from", "2")[2]
    assert "has learned 1 of 3 tasks, not 2" in wrong
    other = ("--n_tasks", "2", "--loadcheck", checkpoint, "--start_from", "1")
    assert (
        "learned tasks of other classes, --n_tasks is 2, there 3"
        in run("--model", "er", "--buffer_size", "50", *other)[2]
    )
    assert (
        "learned by er, not by sgd"
        in run("--model", "sgd", "--loadcheck", checkpoint, "--start_from", "1")[2]
    )


@pytest.mark.parametrize("model", ["icarl", "joint"])
def test_inference_only_evaluates_what_was_learned_and_trains_nothing(model, run):
    size = ("--buffer_size", "30") if model == "icarl" else ()
    learned, folder, _ = run("--model", model, *size, "--savecheck", "last")
    given = ("--model", model, *size, "--inference_only", "--loadcheck")
    again, _, _ = run(*given, str(folder / "checkpoint.pt"))
    assert np.array_equal(matrix(again)[-1], matrix(learned)[-1]) and np.isnan(matrix(again)[:-1]).all()
    assert again["status"] == "finished" and again["images_per_second"] is None
    weights = run(*given, str(folder / "weights" / "last.pt"))
    if model == "icarl":
        assert "holds weights alone, and icarl keeps more" in weights[2]
    else:
        assert np.array_equal(matrix(weights[0])[-1], matrix(learned)[-1])


def test_weights_alone_are_enough_for_a_method_that_keeps_no_more(run):
    whole, folder, _ = run("--model", "sgd", "--savecheck", "task")
    weights = str(folder / "weights" / "task_0.pt")
    rest, _, _ = run("--model", "sgd", "--loadcheck", weights, "--start_from", "1")
    assert np.array_equal(matrix(rest)[1:], matrix(whole)[1:])
    assert "er keeps more" in run("--model", "er", "--loadcheck", weights, "--start_from", "1")[2]
    assert "the stream has 3 tasks" in run("--model", "sgd", "--loadcheck", weights, "--start_from", "3")[2]
