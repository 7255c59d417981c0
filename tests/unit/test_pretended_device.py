"""The pretended device can fail: planted mistakes raise or are counted, and legal code is neither."""

import pytest
import torch
import torch.nn.functional as F

from engram.utils.transfer import send
from tests.pretended_device import CUDA, DeviceError, PretendedDevice


@pytest.fixture
def gpu():
    with PretendedDevice() as device:
        yield device


def on_device(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel(), device="cuda").view(shape)


REFUSED = {
    "an operand on the CPU": lambda x: x + torch.ones(3),
    "numpy of a device tensor": lambda x: x.numpy(),
    "an index on the device for a CPU tensor": lambda x: torch.zeros(5)[x.long()],
    "index_select by a host index": lambda x: x.index_select(0, torch.tensor([0])),
    "a matrix product with a CPU tensor": lambda x: x.view(1, 3) @ torch.ones(3, 1),
    "values from the CPU stored by index": lambda x: x.index_put_((x.long() - 1,), torch.ones(3)),
    "a CPU generator for device numbers": lambda x: x.uniform_(generator=torch.Generator().manual_seed(0)),
    "a device generator for CPU numbers": lambda x: torch.rand(3, generator=torch.Generator("cuda")),
    "a mask of the CPU": lambda x: torch.where(torch.ones(3) > 0, x, x),
    "a concatenation of both": lambda x: torch.cat((x, torch.ones(3))),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cuda_refuses_is_refused(mistake, gpu):
    with pytest.raises(DeviceError):
        REFUSED[mistake](on_device(3))


WAITING = {
    "item": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "float": lambda x: float(x[0]),
    "nonzero": lambda x: (x > 1).nonzero(),
    "a mask as index": lambda x: x[x > 1],
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().bincount(),
    "a list moved": lambda x: torch.tensor([1, 2], device="cuda"),
    "a pageable tensor moved": lambda x: torch.ones(2).to("cuda"),
    "pageable though non_blocking": lambda x: torch.ones(2).to("cuda", non_blocking=True),
    "a CPU tensor as index": lambda x: x[torch.tensor([0, 2])],
    "a list as index": lambda x: x.__setitem__([0, 2], 1.0),
    "copy_ from the host": lambda x: x.copy_(torch.ones(3)),
    "repeat_interleave by counts": lambda x: x.repeat_interleave(x.long()),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("operation", WAITING)
def test_what_blocks_the_host_is_counted_with_its_line(operation, gpu):
    x = on_device(3)
    assert not gpu.waits
    WAITING[operation](x)
    assert sum(gpu.waits.values()) == 1, gpu.waits
    ((_, line),) = gpu.waits
    assert line.startswith("tests/unit/test_pretended_device.py:")


LEGAL = {
    "arithmetic with numbers": lambda x: (x * 2 + torch.tensor(1.0)).sum(),
    "an index on the device": lambda x: x[torch.zeros(2, dtype=torch.long, device="cuda")],
    "masked_fill": lambda x: x.masked_fill(x > 1, 0),
    "a mask that fills": lambda x: x.__setitem__(x > 1, 0.0),
    "one_hot of a known width": lambda x: F.one_hot(x.long(), 5),
    "host values sent": lambda x: x[send([0, 1], x.device)],
    "a host tensor sent": lambda x: x + send(torch.ones(3), x.device),
    "a slice": lambda x: x[1:].clone(),
    "numbers drawn there": lambda x: torch.rand(3, generator=torch.Generator("cuda"), device="cuda") + x,
    "clipping": lambda x: torch.nn.utils.clip_grad_norm_(learning(x), 1.0),
}  # fmt: skip


def learning(x: torch.Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(x)
    parameter.sum().backward()
    return parameter


@pytest.mark.parametrize("operation", LEGAL)
def test_legal_code_neither_raises_nor_waits(operation, gpu):
    LEGAL[operation](on_device(3))
    assert not gpu.waits


def test_a_training_step_stays_on_the_device(gpu):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    with gpu.unwatched():
        net.to("cuda")
    optimizer = torch.optim.Adam(net.parameters())
    F.cross_entropy(net(on_device(5, 3)), torch.zeros(5, dtype=torch.long, device="cuda")).backward()
    optimizer.step()
    state = [value for group in optimizer.state.values() for value in group.values() if value.dim()]
    tensors = [*net.parameters(), *(p.grad for p in net.parameters()), *state]
    assert len(tensors) == 24 and all(t.device == CUDA for t in tensors)
    assert not gpu.waits
    assert gpu.launches["addmm"] == 2


def test_values_are_those_of_the_cpu(gpu):
    expected = torch.arange(1.0, 4).square()
    with gpu.unwatched():
        assert torch.equal(on_device(3).square().cpu(), expected)


def test_outside_nothing_is_pretended():
    with PretendedDevice():
        assert torch.cuda.is_available() and torch.zeros(1, device="cuda").device == CUDA
    assert torch.zeros(1).device.type == "cpu" and torch.Generator().device.type == "cpu"
