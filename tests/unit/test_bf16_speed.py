"""The line that says where --precision bf16 is faster: what it depends on, and how it is measured."""

import pytest
import torch
from torch import nn

from engram.main import main
from engram.utils import bf16_speed
from engram.utils.bf16_speed import advice
from tests.unit.test_precision import CPU, CUDA, cuda

CONVOLUTIONAL = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1))
FASTER = "--precision bf16 would be faster: a convolution is 2.6 times as fast here (measured now)"


def measured(monkeypatch, factor: float) -> None:
    monkeypatch.setattr(bf16_speed, "speedup", lambda device: factor)


@pytest.mark.parametrize(
    ("precision", "network", "factor", "line"),
    [
        ("fp32", CONVOLUTIONAL, 2.649, FASTER),
        ("fp32", CONVOLUTIONAL, 1.2, None),
        ("fp32", CONVOLUTIONAL, 0.3, None),
        ("fp32", nn.Linear(1, 1), 2.6, None),
        ("bf16", CONVOLUTIONAL, 2.6, None),
        ("bf16", CONVOLUTIONAL, 0.31, "bf16 is slower than fp32 on this CPU: 0.3 of its speed"),
    ],
)
def test_on_a_cpu_what_is_measured_decides(monkeypatch, precision, network, factor, line):
    measured(monkeypatch, factor)
    assert advice(precision, network, CPU, long_run=False) == line


@pytest.mark.parametrize(
    ("long_run", "bf16", "factor", "line"),
    [
        (True, True, 2.649, FASTER),
        (False, True, 2.6, None),
        (True, False, 2.6, None),
        (True, True, 1.1, None),
    ],
)
def test_on_cuda_the_run_must_be_long_too(monkeypatch, long_run, bf16, factor, line):
    measured(monkeypatch, factor)
    monkeypatch.setattr(torch, "cuda", cuda((9, 0), bf16))
    assert advice("tf32", CONVOLUTIONAL, CUDA, long_run) == line


def test_the_measurement_compares_least_times_and_draws_nothing(monkeypatch):
    before = torch.get_rng_state()
    assert 0 < bf16_speed.speedup(CPU) < 1000
    assert torch.equal(torch.get_rng_state(), before)
    seconds = {torch.float32: iter([9, 5.0, 3.0, 4.0]), torch.bfloat16: iter([1, 2.0, 2.5, 1.5])}
    now = [0.0]

    def work_of(device, dtype):
        return lambda: now.__setitem__(0, now[0] + next(seconds[dtype]))

    monkeypatch.setattr(bf16_speed, "_convolution", work_of)
    monkeypatch.setattr(bf16_speed.time, "process_time", lambda: now[0])
    assert bf16_speed.speedup(CPU) == 2.0, "3.0 of 5, 3, 4 against 1.5; the first of each prepares"


@pytest.mark.parametrize("ticks", [[0, 0, 0, 0], [0, 10, 10, 10]])
def test_a_clock_of_long_ticks_tells_nothing(ticks, monkeypatch):
    """Under `ulimit -t` Linux counts a process's time in ticks that are longer than a convolution."""
    ticks, now = iter(ticks * 2), [0.0]

    def work_of(device, dtype):
        return lambda: now.__setitem__(0, now[0] + next(ticks))

    monkeypatch.setattr(bf16_speed, "_convolution", work_of)
    monkeypatch.setattr(bf16_speed.time, "process_time", lambda: now[0])
    assert bf16_speed.speedup(CPU) == 1.0


def test_a_run_says_it_at_the_start(tmp_path, monkeypatch, capsys):
    measured(monkeypatch, 2.649)
    flags = ["--model", "sgd", "--dataset", "seq-digits", "--backbone", "cnn", "--debug_mode", "1"]
    assert main([*flags, "--n_tasks", "2", "--output_dir", str(tmp_path)]) == 0
    assert f"speed:   {FASTER}" in capsys.readouterr().out
