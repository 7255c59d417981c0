"""Layer-by-layer importances where test_importance.py does not look: odd layers, other quantities, labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.models.parts import importance, layers
from engram.models.parts.fisher import log_likelihood
from engram.models.parts.norms import NORMS


class Net(nn.Module):
    """Any layers, called as a backbone is; `again` is used a second time when it is named."""

    def __init__(self, *body: nn.Module, again: int | None = None):
        super().__init__()
        self.body, self.again = nn.Sequential(*body), again

    def forward(self, x: Tensor, task_id: Tensor | None = None) -> Tensor:
        out = self.body(x)
        return out if self.again is None else out + self.body[self.again](out)


def odd_convolutions() -> list[nn.Module]:
    """Strides, dilation, 1x1 and rectangular kernels, no bias, ReLUs that overwrite their input."""
    return [
        nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, (1, 3), stride=2, padding=(0, 1), bias=False), nn.BatchNorm2d(5),
        nn.ReLU(inplace=True), nn.Conv2d(5, 6, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24, 7), nn.ReLU(inplace=True), nn.Linear(7, 4, bias=False),
    ]  # fmt: skip


NETS = {
    "odd convolutions": lambda: Net(*odd_convolutions()),
    "batch norm without scale": lambda: Net(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    ),
    "grouped convolution": lambda: Net(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(216, 4)),
    "layer norm": lambda: Net(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 4)),
    "a layer used twice": lambda: Net(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 4), again=2),
}
# There is no rule for these: the general way takes over.
GENERAL = {"grouped convolution", "layer norm", "a layer used twice"}


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NETS[name]().double()
        net(torch.randn(50, 3, 8, 8, dtype=torch.float64))  # moves the batch-norm statistics
    return net.eval()


def images(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.zeros(n, dtype=torch.long), torch.randint(4, (n,), generator=generator)


def brute_force(net: nn.Module, x: Tensor, quantities, power: int, *given: Tensor) -> dict[str, Tensor]:
    """One backward pass per sample and quantity."""
    totals = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for i in range(len(x)):
        values, weights = quantities(net(x[i : i + 1]), *(g[i : i + 1] for g in given))
        for value, weight in zip(values[0], weights[0].detach(), strict=True):
            gradients = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
            for name, g in zip(totals, gradients, strict=True):
                totals[name] += weight * g.abs() ** power
    return totals


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_layer_equals_one_backward_per_sample(name, power, monkeypatch):
    monkeypatch.setitem(layers.BLOCK_FLOATS, "cpu", 100)  # blocks smaller than a layer
    net, (x, task_id, _) = network(name), images(7)
    found = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    by_rule = layers.accumulate(found, net, x, task_id, NORMS["l2sq"], power)
    assert by_rule == (name not in GENERAL)
    if not by_rule:
        assert all(not value.any() for value in found.values()), "nothing may be added on the way"
        importance.accumulate(found, net, x, task_id, NORMS["l2sq"], power)
    close(found, brute_force(net, x, NORMS["l2sq"], power))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("accumulate", [importance.accumulate, importance.accumulate_any])
def test_every_norm_equals_one_backward_per_sample(norm, accumulate):
    net, (x, task_id, _) = network("odd convolutions"), images(6)
    found = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    accumulate(found, net, x, task_id, NORMS[norm], 1)
    close(found, brute_force(net, x, NORMS[norm], 1))


@pytest.mark.parametrize("accumulate", [importance.accumulate, importance.accumulate_any])
def test_labels_travel_with_their_samples(accumulate):
    net, (x, task_id, y) = network("odd convolutions"), images(6)
    found = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for part in (slice(0, 4), slice(4, 6)):
        accumulate(found, net, x[part], task_id[part], log_likelihood, 2, y[part])
    expected = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for i in range(len(x)):
        loss = F.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        for name, g in zip(expected, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            expected[name] += g.square()
    close(found, expected)


def test_norms_by_hand():
    logits = torch.tensor([[3.0, -4.0]])
    values = {name: norm(logits) for name, norm in NORMS.items()}
    assert values["l2sq"][0].tolist() == [[25.0]] and values["l2"][0].tolist() == [[5.0]]
    assert values["l1"][0].tolist() == [[7.0]] and values["vector"][0].tolist() == [[3.0, -4.0]]
    assert values["vector"][1].tolist() == [[0.5, 0.5]]
    zero = torch.zeros(1, 2, requires_grad=True)
    NORMS["l2"](zero)[0].sum().backward()
    assert torch.equal(zero.grad, torch.zeros(1, 2)), "no NaN at the origin"


def test_what_is_held_of_a_sample_is_counted():
    net, (x, task_id, _) = network("batch norm without scale"), images(1)
    names = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    convolution, linear = 3 * 64 + 4 * 36, 144 + 4
    assert layers.floats_per_sample(net, names, x, task_id) == convolution + linear + 27 * 36
    assert layers.floats_per_sample(network("layer norm"), {"body.1.weight": x}, x, task_id) is None
