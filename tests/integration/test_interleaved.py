"""Runs that share a process: each computes what it does alone, fails alone, and all are stopped together."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from engram.scripts import sweep, worker
from engram.utils import checkpoint
from engram.utils.config.cli import parse
from engram.utils.training import interleaved
from engram.utils.training.interleaved import InterleavedJob
from engram.utils.training.trainer import Trainer
from tests.conftest import ROOT
from tests.integration.test_resume import EXTRA, measured
from tests.waiting import exit_code, wait_until

pytestmark = pytest.mark.slow

FLAGS = ["--dataset", "seq-digits", "--disable_log", "--n_epochs", "2", "--batch_size", "40"]
# With a buffer, scores, a teacher, importances, a compiled kernel, exemplars.
MODELS = ["er", "maer", "lwf", "ewc", "mer", "icarl"]


def flags_of(model: str, seed: int, *more: str) -> dict:
    return parse(["--model", model, *FLAGS, *EXTRA.get(model, []), "--seed", str(seed), *more]).config.flat()


def state_of(folder: Path) -> dict:
    return checkpoint.read(folder / "checkpoint.pt")


def assert_equal(found, expected, where: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_equal(*pair, f"{where}[{i}]")
    else:
        assert found == expected, where


def run_both(tmp_path: Path, runs: list[dict]) -> tuple[list[int], int]:
    """Exit codes alone, and the one of all together."""
    alone = [worker.execute_run(str(tmp_path / "alone" / str(i)), flags) for i, flags in enumerate(runs)]
    together = [(str(tmp_path / "together" / str(i)), flags) for i, flags in enumerate(runs)]
    return alone, worker.execute_interleaved(together)


def assert_the_same(tmp_path: Path, i: int) -> None:
    alone, together = tmp_path / "alone" / str(i), tmp_path / "together" / str(i)
    assert measured(together) == measured(alone)
    for part in ("method", "optimizer"):
        assert_equal(state_of(together)[part], state_of(alone)[part], part)


@pytest.mark.parametrize("model", MODELS)
def test_each_run_computes_what_it_does_alone(tmp_path, model):
    """Weights, buffers and optimizer too, bit for bit; the runs have different lengths."""
    lengths = ([], ["--n_tasks", "2"], ["--n_epochs", "3"])
    assert run_both(tmp_path, [flags_of(model, i, *more) for i, more in enumerate(lengths)]) == ([0] * 3, 0)
    for i in range(3):
        assert_the_same(tmp_path, i)


def test_the_training_loop_passes_its_turn_on_after_every_step(tmp_path, monkeypatch):
    order, after_step = [], Trainer._between_steps

    def noting(self, *args):
        order.append(self.config.run.seed)
        after_step(self, *args)

    monkeypatch.setattr(Trainer, "_between_steps", noting)
    runs = [(str(tmp_path / str(seed)), flags_of("sgd", seed)) for seed in range(3)]
    assert worker.execute_interleaved(runs) == 0
    assert order == [0, 1, 2] * (len(order) // 3) and len(order) > 100


def test_convolutions_and_batch_norm_too(tmp_path):
    more = [
        "--backbone",
        "resnet18",
        "--width",
        "0.125",
        "--n_iters",
        "2",
        "--n_tasks",
        "2",
        "--num_threads",
        "1",
    ]
    assert run_both(tmp_path, [flags_of("er", seed, *more) for seed in (0, 1)]) == ([0, 0], 0)
    for i in range(2):
        assert_the_same(tmp_path, i)


def test_one_that_fails_harms_no_other(tmp_path):
    """A loss that is not finite, flags that are refused, a method that raises."""
    bad = [flags_of("er", 1, "--lr", "1e30"), flags_of("er", 2) | {"data_dir": str(tmp_path / "none")}]
    runs = [flags_of("er", 0), *bad, flags_of("ewc", 3) | {"e_lambda": "many"}]
    alone, code = run_both(tmp_path, runs)
    assert alone[:2] == [0, 1] and code == 1
    assert_the_same(tmp_path, 0)
    assert "the loss became" in (tmp_path / "together" / "1" / "output.txt").read_text()
    assert "the loss became" not in (tmp_path / "together" / "0" / "output.txt").read_text()


def test_steps_are_taken_in_turn_and_output_stays_apart(tmp_path):
    told = []

    def work(i: int, n: int) -> int:
        for step in range(n):
            told.append((step, i))
            print(f"step {step} of {i}")
            interleaved.yield_turn()
        print("error", file=sys.stderr)
        return i

    parts = [
        InterleavedJob(partial(work, i, n), str(tmp_path / str(i) / "out"), "cpu")
        for i, n in enumerate((2, 4, 3))
    ]
    assert interleaved.run_interleaved(parts) == 1 and interleaved.n_runs() == 1
    assert told == sorted(told), "every run takes its first step before one takes its second"
    for i, n in enumerate((2, 4, 3)):
        lines = [f"step {step} of {i}" for step in range(n)]
        assert (tmp_path / str(i) / "out").read_text().splitlines() == [*lines, "error"]


def test_an_exception_is_the_failure_of_its_run_alone(tmp_path):
    def fail() -> int:
        interleaved.yield_turn()
        raise RuntimeError("of its own")

    parts = [InterleavedJob(do, str(tmp_path / str(i)), "cpu") for i, do in enumerate((fail, lambda: 0))]
    assert interleaved.run_interleaved(parts) == 1
    assert "RuntimeError: of its own" in (tmp_path / "0").read_text() and not (tmp_path / "1").read_text()


GRID = ["--model", "er", "--seed", "0", "1", "2", "--seeds_together", "2", "--jobs", "2"]


def start(folder: Path, log) -> subprocess.Popen:
    fixed = ["--dataset", "seq-digits", "--disable_log", "--n_epochs", "4", "--checkpoint_every", "0.0005"]
    own = [*GRID, "--output_dir", str(folder), "--", *fixed]
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *own]
    return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_sweep_of_seeds_together_is_interrupted_and_goes_on(tmp_path):
    """SIGTERM once runs have saved; started again, all end as runs alone do."""
    folder, log = tmp_path / "runs", tmp_path / "log"
    with open(log, "w") as file:
        process = start(folder, file)
        wait_until(lambda: any(folder.glob("*/*/*/checkpoint.pt")), process, f"see {log}")
        process.send_signal(signal.SIGTERM)
        assert exit_code(process) == 128 + signal.SIGTERM, log.read_text()
        documents = [json.loads(path.read_text()) for path in folder.glob("*/*/*/results.json")]
        assert {d["status"] for d in documents} <= {"interrupted", "finished"}
        assert exit_code(start(folder, file)) == 0, log.read_text()
    assert "3 runs: " in log.read_text() and " 0 failed" in log.read_text()
    for path in folder.glob("*/*/*/results.json"):
        document = json.loads(path.read_text())
        alone = tmp_path / "alone" / path.parent.name
        assert worker.execute_run(str(alone), document["config"]) == 0
        assert measured(path.parent) == measured(alone)
    sharing = {d["seed"] for d in documents if d["device"].startswith("shared by 2 runs")}
    assert sharing == {0, 1}, "seed 2 had a process of its own"


def test_seeds_of_one_setting_share_a_process(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--seeds_together", "two"])
    assert sweep.main(["--model", "er", "--seeds_together", "0"]) == 2
    assert "--seeds_together 0: must be >= 1" in capsys.readouterr().err
