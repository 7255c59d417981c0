"""What a run tells of itself, its times and its origin, over resumes; which checkpoints it continues."""

import time
from contextlib import suppress
from dataclasses import replace

import pytest

from engram.utils import checkpoint
from engram.utils.checkpoint import CheckpointError
from engram.utils.config.version import GitState
from engram.utils.errors import UserError
from engram.utils.runs.record_of_run import record_of
from engram.utils.training import environment, progress, trainer
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.distributed_trainer import FollowerTrainer
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method

N_STEPS = 3 * 8  # three tasks of 30 images, in batches of 4


class Clock:
    """Stands still unless told to go on."""

    def __init__(self, step: float = 1.0):
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Time in which a training step takes a second, an evaluation ten, and nothing else any."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    real = trainer.accuracies

    def slow(*args, **named):
        clock.spend(10)
        return real(*args, **named)

    monkeypatch.setattr(trainer, "accuracies", slow)
    return clock


class KilledError(Exception):
    """Stands for SIGKILL."""


def trainer_of(folder, clock=None, die_at: int | None = None, kind=Trainer, **flags) -> Trainer:
    """A trainer on the tiny stream, whose process may end after some step."""
    method, config = tiny_method("sgd", **flags)
    trainer = kind(config, method, folder, quiet=True)
    real = trainer._between_steps

    def after_step(*args):
        if clock:
            clock.spend(clock.step)
        if trainer.position.total == die_at:
            raise KilledError
        real(*args)

    trainer._between_steps = after_step
    return trainer


def gone_on(folder, clock=None, die_at: int | None = None, **flags) -> Trainer:
    """The run in the folder, from its checkpoint to its end or to the step at which it is killed."""
    trainer = trainer_of(folder, clock, die_at, **flags)
    trainer.load()
    with suppress(KilledError):
        trainer.run()
    return trainer


def test_time_counts_as_the_innermost_and_is_saved_while_it_runs(clock):
    kept = AccuracyLog(2, "class-il")
    clock.spend(1)
    with kept.timed("train"):
        clock.spend(2)
        with kept.timed("eval"):
            clock.spend(4)
        clock.spend(8)
        assert kept.state_dict()["seconds"] == {"total": 15, "train": 10, "eval": 4, "data": 0}
        clock.spend(16)
    assert kept.state_dict()["seconds"] == {"total": 31, "train": 26, "eval": 4, "data": 0}


@pytest.mark.parametrize("eval_every", [0, 3])
def test_times_of_a_run_that_was_killed_are_those_of_one_that_was_not(folder, clock, eval_every):
    flags = {"eval_every": eval_every, "checkpoint_every": 0.0}
    n_evaluations = 1 + 3 + (N_STEPS // eval_every if eval_every else 0)
    for die_at in (5, 13, None):  # all of them inside an epoch
        trainer = gone_on(folder, clock, die_at, **flags)
    expected = {"total": N_STEPS + 10 * n_evaluations, "train": N_STEPS, "eval": 10 * n_evaluations}
    assert trainer.results.seconds == expected | {"data": 0}
    assert trainer.results.n_images == 90


def test_queued_steps_are_waited_for_before_an_evaluation_is_timed(folder, monkeypatch):
    trainer = trainer_of(folder, eval_every=4)
    read = []
    monkeypatch.setattr(
        trainer, "_evaluate_inside", lambda task: read.append((trainer.position.total, trainer.losses._n))
    )
    trainer.run()
    assert read == [(step, 0) for step in range(4, N_STEPS + 1, 4)]


def origin_is(monkeypatch, commit: str, device: str, peak: int) -> None:
    monkeypatch.setattr(environment, "git_state", lambda: GitState(commit, commit == "bb"))
    monkeypatch.setattr(environment, "device_name", lambda device_: device)
    monkeypatch.setattr(environment, "peak_memory", lambda device_: peak)
    monkeypatch.setattr(environment, "versions", lambda: {"torch": f"2.{commit}"})


def test_a_run_comes_from_all_processes_that_took_its_steps(folder, monkeypatch):
    def told(trainer):
        found = record_of(trainer.results, "finished", trainer.config.flat(), trainer.benchmark)
        code = (found.git_commit, found.git_dirty)
        return [code, found.device, found.peak_memory_bytes, found.versions, found.precision]

    flags = {"checkpoint_every": 0.0}
    for commit, device, peak, die_at in (("aa", "cpu", 7, 5), ("bb", "cuda", 5, 13), ("aa", "cpu", 3, None)):
        origin_is(monkeypatch, commit, device, peak)
        trainer = gone_on(folder, die_at=die_at, **flags)
    expected = [("aa, bb", True), "cpu, cuda", 7, {"torch": "2.aa, 2.bb"}, "fp32"]
    assert told(trainer) == expected
    origin_is(monkeypatch, "later", "elsewhere", 99)
    assert told(gone_on(folder, **flags)) == expected, "of a finished run no step is left to take"


def test_a_checkpoint_older_than_a_flag_is_continued_with_its_default(folder):
    trainer = trainer_of(folder)
    trainer.run()
    path = folder / "checkpoint.pt"
    saved = checkpoint.read(path)
    del saved["config"]["keep_optimizer"], saved["config"]["lr_milestones"]
    checkpoint.write(saved, path)
    again = trainer_of(folder)
    again.load()
    assert again.position.task == 3
    with pytest.raises(CheckpointError, match="--keep_optimizer is True, there False"):
        trainer_of(folder, keep_optimizer=True).load()
    with pytest.raises(CheckpointError, match=r"--lr is 0\.2, there 0\.05"):
        trainer_of(folder, lr=0.2).load()
    checkpoint.write(saved | {"config": saved["config"] | {"gone": 1}}, path)  # resolves no more
    with pytest.raises(CheckpointError, match=r"--lr_milestones is .*, there None"):
        trainer_of(folder).load()


def test_a_checkpoint_that_does_not_tell_its_classes_is_refused(folder):
    trainer_of(folder).run()
    saved = checkpoint.read(folder / "checkpoint.pt")
    del saved["classes"]
    checkpoint.write(saved, folder / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="the classes of the data, or their order"):
        trainer_of(folder).load()


def without(name):
    return lambda saved: {key: value for key, value in saved.items() if key != name}


@pytest.mark.parametrize(
    "damage",
    [
        *map(without, ("config", "position", "results", "early_stopping", "method")),
        lambda saved: saved | {"config": None},
        lambda saved: saved | {"position": [1, 2]},
        lambda saved: saved | {"position": {"tasks": 1}},
        lambda saved: saved | {"results": {}},
        lambda saved: saved | {"method": None},
    ],
)
def test_a_checkpoint_without_a_part_is_one_line(folder, damage):
    trainer_of(folder).run()
    path = folder / "checkpoint.pt"
    checkpoint.write(damage(checkpoint.read(path)), path)
    with pytest.raises(CheckpointError) as error:
        trainer_of(folder).load()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "step, checkpoint, expected",
    [
        (1, 5, [5, 8, 13, 16, 21, 24]),  # a checkpoint every five steps, and where a task ends
        (6, 3600, [3, 5, 7, 8, 11, 13, 15, 16, 19, 21, 23, 24]),  # progress every ten seconds
    ],
)
def test_a_follower_reads_the_device_as_often_as_the_first_process(
    folder, monkeypatch, step, checkpoint, expected
):
    """Not at every step once it is time for the first checkpoint, or for a line of progress."""
    clock = Clock(step)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setitem(progress.INTERVAL_SECONDS, "bar", 10.0)
    for kind in (Trainer, FollowerTrainer):
        trainer = trainer_of(folder / kind.__name__, clock, kind=kind, checkpoint_every=checkpoint / 60)
        assert readings(trainer, monkeypatch) == expected, kind
    assert not (folder / "Follower").exists()


def readings(trainer, monkeypatch) -> list[int]:
    """The steps after which a run reads its losses."""
    found, real = [], trainer.losses.read
    monkeypatch.setattr(trainer.losses, "read", lambda: found.append(trainer.position.total) or real())
    trainer.run()
    return found


def test_early_stopping_refuses_a_task_without_validation_data(folder):
    made = trainer_of(folder, validation=20.0, early_stopping_patience=2)
    tasks = made.benchmark.tasks
    tasks[0] = replace(tasks[0], test_index=tasks[0].test_index[:0])
    with pytest.raises(UserError, match="task 0 has no validation data"):
        made._stopped_early(tasks[0])
