"""Losses kept on the device, the step of the first one that is not finite, plain lines off a terminal."""

import math

import pytest
import torch

from engram.utils.training import progress
from engram.utils.training.progress import CAPACITY, DivergedError, LossLog, Progress
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method


def test_losses_come_back_in_order_once():
    log = LossLog(torch.device("cpu"))
    for step in range(5):
        log.add(10 + step, torch.tensor(float(step)))
    assert log.read_finite() == [0, 1, 2, 3, 4] and log.read() == []
    log.add(99, torch.tensor(7.0))
    assert log.first_step == 99 and log.read() == [7.0]


def test_full_at_capacity():
    log = LossLog(torch.device("cpu"))
    for step in range(CAPACITY):
        assert not log.full
        log.add(step, torch.tensor(0.0))
    assert log.full


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_named(bad):
    log = LossLog(torch.device("cpu"))
    for step, loss in enumerate([1.0, 2.0, bad, bad], start=40):
        log.add(step, torch.tensor(loss))
    with pytest.raises(DivergedError, match=r"became -?(nan|inf) at training step 42"):
        log.read_finite()


def test_lines_off_a_terminal(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = Progress(n_steps=100, done=20)
    bar.show("task 1", [0.5, 0.7], 64)  # after 5 s: too soon for a line
    bar.show("task 1", [0.25, 0.75], 64)  # after 12 s: 4 steps done, 76 left
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["task 1, 24/100 of the run, loss 0.5000, 11 images/s, 228 s left"]


def test_the_label_holds_the_steps_of_the_epoch_beside_those_of_the_run(monkeypatch):
    """6 classes in 3 tasks of 30 samples, batches of 4: 8 steps for each epoch."""
    method, config = tiny_method("sgd", n_epochs=2)
    trainer, labels = Trainer(config, method, folder=None, quiet=True), []
    trainer.save = lambda: None
    monkeypatch.setattr(Progress, "show", lambda self, label, losses, n_images: labels.append(label))
    trainer.run()
    assert labels[:2] == ["task 0 (1/3) epoch 1/2 step 8/8", "task 0 (1/3) epoch 2/2 step 8/8"]
