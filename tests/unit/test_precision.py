"""The precision that a run computes in: what --precision means on a device, and what is said of it."""

from unittest import mock

import pytest
import torch
from torch import nn

from engram.utils import precision
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
from engram.utils.runs.run_record import RunRecord
from engram.utils.training.environment import Environment
from tests.unit.stored_records import stored_record

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def cuda(capability: tuple[int, int], bf16: bool) -> mock.MagicMock:
    """A torch.cuda whose device has this compute capability."""
    made = mock.MagicMock()
    made.get_device_capability.return_value = capability
    made.is_bf16_supported.return_value = bf16
    made.get_device_name.return_value = "Tesla T4"
    return made


@pytest.mark.parametrize(
    ("requested", "on_cpu", "on_ampere", "on_turing"),
    [("auto", "fp32", "tf32", "fp32"), ("fp32",) * 4, ("tf32", "fp32", "tf32", "fp32")],
)
def test_what_is_requested_is_resolved_by_the_device(monkeypatch, requested, on_cpu, on_ampere, on_turing):
    assert precision.resolve(requested, CPU) == on_cpu
    monkeypatch.setattr(torch, "cuda", cuda((8, 0), True))
    assert precision.resolve(requested, CUDA) == on_ampere
    monkeypatch.setattr(torch, "cuda", cuda((7, 5), False))
    assert precision.resolve(requested, CUDA) == on_turing


def test_bf16_is_refused_by_name_on_a_cuda_device_without_it(monkeypatch):
    assert precision.resolve("bf16", CPU) == "bf16"
    monkeypatch.setattr(torch, "cuda", cuda((9, 0), True))
    assert precision.resolve("bf16", CUDA) == "bf16"
    monkeypatch.setattr(torch, "cuda", cuda((7, 5), False))
    with pytest.raises(UserError, match="Tesla T4 has no bfloat16 arithmetic; use --precision fp32"):
        precision.resolve("bf16", CUDA)


@pytest.mark.parametrize(
    ("name", "products", "convolutions"), [("tf32", "high", True), ("fp32", "highest", False)]
)
def test_only_tf32_lets_products_be_rounded(name, products, convolutions):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        precision.configure(name)
        assert torch.get_float32_matmul_precision() == products
        assert torch.backends.cudnn.allow_tf32 is convolutions
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_what_is_said_at_the_start():
    assert precision.described("bf16", "bf16") == "bf16"
    assert precision.described("auto", "tf32") == "tf32 (chosen by --precision auto)"
    assert (
        precision.described("tf32", "fp32") == "fp32 (--precision tf32 needs a CUDA device with such units)"
    )


def test_the_default_is_auto_and_stays_so_in_the_configuration():
    assert resolve([("test", {"model": "sgd"})]).flat()["precision"] == "auto"


def test_checkpoints_and_results_of_before_have_no_precision():
    old = Environment.from_json({"git_commit": "a", "device": "cpu", "versions": {}})
    assert old.precision is None and old.git_dirty is None
    document = stored_record({"seed": 0}).to_json()
    noted = RunRecord.from_json(document | {"precision": "tf32"})
    assert noted.precision == noted.to_json()["precision"] == "tf32"
    del document["precision"]
    assert RunRecord.from_json(document).precision is None
    with pytest.raises(UserError, match="precision: expected text, got 32"):
        RunRecord.from_json(document | {"precision": 32})


@pytest.mark.parametrize(
    ("flag", "used", "expected"),
    [("auto", "tf32", "tf32"), ("fp32", None, "fp32"), ("auto", None, None), (None, None, None)],
)
def test_the_used_precision_is_the_noted_one_or_that_of_the_old_flag(flag, used, expected):
    config = {"model": "sgd", "dataset": "seq-digits", "seed": 0} | ({"precision": flag} if flag else {})
    record = RunRecord(config, "finished", {}, precision=used)
    assert record.used_precision == expected
    assert record.current_flags()["precision"] == (expected or "auto")


@pytest.mark.parametrize(
    ("layer", "device", "timed"),
    [(nn.Conv2d(1, 1, 1), CUDA, True), (nn.Linear(1, 1), CUDA, False), (nn.Conv2d(1, 1, 1), CPU, False)],
)
def test_convolutions_are_timed_on_cuda_alone(layer, device, timed):
    before = torch.backends.cudnn.benchmark
    try:
        precision.time_convolutions(nn.Sequential(layer), device)
        assert torch.backends.cudnn.benchmark is timed
    finally:
        torch.backends.cudnn.benchmark = before
