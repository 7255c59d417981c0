"""SIGKILL at every point of a run, for a few methods; scripts/dev/kill_check.py asks all of them."""

import os

import pytest
import torch

from engram.scripts.dev import kill_check
from engram.scripts.dev.kill_points import RUN_POINTS, Kill, Saboteur, run_in_child
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config import registry
from engram.utils.training.trainer import Trainer
from tests.conftest import random_draws

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")]

SEED = int(os.environ.get("TEST_SEED", 0))
SAMPLE = random_draws("methods to kill").sample(
    sorted(set(registry.names("models")) - set(kill_check.SHORT)), 4
)


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """Every fork of this process has what torch imports late."""
    kill_check.warm_up()


@pytest.mark.parametrize("model", SAMPLE)
def test_a_killed_run_comes_back_with_the_same_bits(model, tmp_path):
    takes_steps = kill_check.method_class(model).takes_steps
    n_points = len(RUN_POINTS) - (not takes_steps)  # no step is a point then
    assert kill_check.check_method(model, list(RUN_POINTS), SEED, tmp_path, None) == [""] * n_points


def test_mlflow_has_the_whole_run_after_a_kill_in_any_of_its_calls(tmp_path):
    database = kill_check.prepare_store(tmp_path)
    points = list(kill_check.MLFLOW_POINTS)
    assert kill_check.check_method("er", points, SEED, tmp_path, database) == [""] * len(points)


def test_a_generator_that_is_not_saved_is_found(monkeypatch, tmp_path, capsys):
    """The mistake that this check is for: the memory draws on with another state after a resume."""
    restore = Buffer.load_state_dict

    def forgetful(buffer, state):
        restore(buffer, state | {"generator": buffer.generator.get_state()})

    monkeypatch.setattr(Buffer, "load_state_dict", forgetful)
    monkeypatch.setattr(kill_check, "warm_up", lambda: None)
    assert kill_check.main(["--only", "er", "--points", "end_task", "--seed", "1"]) == 1
    told = capsys.readouterr().out
    assert "R of class_il" in told and "weights" in told and "state of the method" in told
    assert "kill_check.py --only er --points end_task --seed 1\n" in told
    assert told.endswith("1 kills of 1 methods, 1 failures\n")


def test_a_point_that_was_not_reached_is_a_fault(tmp_path):
    case = kill_check.drawn_case("sgd", SEED, tmp_path)
    told = kill_check.fault_of(case, Kill("step", 10**6, "before"), {}, typed_again=False)
    assert told.startswith("was not killed: it ended with 0")


def test_half_a_checkpoint_is_on_the_disk_at_that_point(tmp_path):
    """The kills are real: the temporary file is there, shorter than a checkpoint, and no later one."""
    case = kill_check.drawn_case("sgd", SEED, tmp_path)
    output, folders = case.place("killed")
    kill = Kill("checkpoint", 2, "half written", 0.5)
    code, _ = run_in_child([*case.flags, *folders], tmp_path / "log", Saboteur(kill, case.every))
    assert code == -9
    (half,) = output.glob("*/*/*/checkpoint.tmp")
    whole = half.with_name("checkpoint.pt")
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert torch.load(whole, weights_only=True)["position"]["total"] == case.every
    assert Trainer._between_steps.__name__ == "_between_steps", "this process is as it was"
