"""Losses kept on the device, the step of the first one that is not finite, plain lines off a terminal."""

import math

import pytest
import torch

from engram.utils.training import progress
from engram.utils.training.progress import CAPACITY, DivergedError, LossLog, Progress


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
    assert said == ["task 1: step 24/100, loss 0.5000, 11 images/s, 228 s left"]
