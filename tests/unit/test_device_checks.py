"""Checks of `scripts/gpu_check.sh` on a pretended device: they pass, and they see what is wrong."""

from collections.abc import Iterator

import pytest
import torch

from engram.models.er import ER
from engram.scripts.bench import device_checks, device_speed
from engram.scripts.bench.check_runner import SkippedCheck
from engram.utils.training.step_graph import N_WARM_UP
from tests.contract.test_device import MAY_WAIT
from tests.pretended_device import PretendedDevice
from tests.pretended_graph import pretended_graphs

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[PretendedDevice]:
    with PretendedDevice() as device:
        yield device


def test_the_device_is_described():
    assert "cuda:0 (pretended)" in device_checks.describe(CUDA).text


@pytest.mark.parametrize("model", ["er", "ewc", "taskinput", "joint"])
def test_methods_train_and_do_not_wait(model):
    assert device_checks.learns(model, "mlp", CUDA).text == "trains"
    assert device_checks.never_waits(model, CUDA).numbers["steps"] == device_checks.N_STEPS


def test_a_wait_in_a_step_is_seen(monkeypatch):
    own_loss = ER.loss

    def loss(self, batch):
        total = own_loss(self, batch)
        assert float(total.detach()) >= 0
        return total

    monkeypatch.setattr(ER, "loss", loss)
    with pytest.raises(RuntimeError, match="synchronizing"):
        device_checks.never_waits("er", CUDA)


def test_the_exceptions_are_those_of_the_contract():
    assert set(device_checks.MAY_WAIT) == set(MAY_WAIT)
    with pytest.raises(SkippedCheck):
        device_checks.never_waits("gem", CUDA)


def test_a_captured_step_is_measured_and_a_refused_one_fails(gpu, monkeypatch):
    monkeypatch.setattr(device_speed, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(device_speed, "flops", lambda *_: 1e6)
    with pretended_graphs(gpu):
        finding = device_speed.captured_speed("er", CUDA, "fp32", quick=True)
        assert gpu.launches["graph"] == 4 * 2 - N_WARM_UP, "epochs of two full batches and an odd one"
        assert finding.numbers["images_per_s"] > 0
        own_loss = ER.loss
        monkeypatch.setattr(ER, "loss", lambda self, b: own_loss(self, b) * float(b.x.sum() > 0))
        with pytest.raises(AssertionError, match="cannot be captured"):
            device_speed.captured_speed("er", CUDA, "fp32", quick=True)


def test_numbers_are_compared_and_others_are_seen(monkeypatch):
    assert device_checks.same_as_on_the_cpu("er", CUDA, n_epochs=1).numbers["largest"] <= 0.1
    own_loss = ER.loss
    monkeypatch.setattr(ER, "loss", lambda self, b: own_loss(self, b) * (0.0 if b.x.is_cuda else 1.0))
    with pytest.raises(AssertionError, match="on average"):
        device_checks.same_as_on_the_cpu("er", CUDA, n_epochs=1)
