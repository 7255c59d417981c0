"""l-MAS against products of activations written out, and against its derivative form."""

import pytest
import torch
from torch import Tensor, nn

from engram.models.parts import hebbian, importance
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.reference.test_importance import Counted, method_with


def learned(method) -> tuple[Tensor, Tensor]:
    """Normalised images of a task, and its id for each."""
    task = method.setup.benchmark.tasks[1]
    samples = method.setup.benchmark.train(task)
    return method.setup.benchmark.augment.normalise(samples.x_raw), samples.task_id


@pytest.mark.parametrize("scenario", ["class-il", "domain-il", "task-il"])
def test_of_a_perceptron_it_is_pre_times_post(scenario):
    method, _ = tiny_method("mas", scenario, mas_local=True, hidden_sizes=(8, 5))
    task = method.setup.benchmark.tasks[1]
    found = method.importance_of(method.setup.benchmark.train(task).x_raw, task)
    x, task_id = learned(method)
    first, second = method.net.layers[1], method.net.layers[3]
    expected: dict[str, Tensor] = {}
    with torch.no_grad():
        y0 = x.flatten(1)
        y1 = first(y0).relu()
        y2 = second(y1).relu()
        steps = [("layers.1", y0, y1), ("layers.3", y1, y2)]
        if scenario != "task-il":
            steps.append(("head", y2, method.net.head(y2).abs()))
        for name, before, after in steps:
            products = [torch.outer(after[n], before[n]) for n in range(len(x))]
            expected[f"{name}.weight"] = torch.stack(products).mean(0)
            expected[f"{name}.bias"] = after.mean(0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    assert torch.equal(method.net.head(y2, task_id), method.net(x, task_id)), "the activations are the net's"


def by_derivatives(net: nn.Module, x: Tensor, task_id: Tensor) -> dict[str, Tensor]:
    """½ |∂ ‖y‖² / ∂θ| per sample, each unit's input held fixed; convolution + batch norm may be a unit."""
    units, recorded = [], {}

    def record(name):
        return lambda module, args, output: recorded.update({name: args[0].detach()})

    kinds = nn.Conv2d | nn.BatchNorm2d | nn.Linear
    modules = [(n, m) for n, m in net.named_modules() if isinstance(m, kinds)]
    hooks = [m.register_forward_hook(record(n)) for n, m in modules]
    net(x, task_id)
    for hook in hooks:
        hook.remove()
    for (name, module), (_, after) in zip(modules, [*modules[1:], ("", None)], strict=True):
        joined = isinstance(module, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)
        units.append((name, module, nn.Sequential(module, after) if joined else module))
    totals = {}
    for name, module, unit in units:
        for i in range(len(x)):
            out = unit(recorded[name][i : i + 1])
            y = out if name == "head" else out.relu()
            names = [f"{name}.{n}" for n, _ in module.named_parameters()]
            gradients = torch.autograd.grad(y.square().sum() / 2, list(module.parameters()))
            for key, g in zip(names, gradients, strict=True):
                totals[key] = totals.get(key, 0) + g.abs() / len(x)
    return totals


@pytest.mark.parametrize("backbone", ["cnn", "resnet"])
def test_of_convolutions_it_is_the_local_derivative(backbone):
    """Convolution and batch norm next to it are one unit; bias, scale and shift included."""
    method = method_with(backbone, "class-il")
    method.net.double().eval()
    x, task_id = (t[:4] for t in learned(method))
    expected = by_derivatives(method.net, x.double(), task_id)
    parameters = dict(method.net.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    watched = hebbian.layers.known_layers(method.net, totals)
    with torch.no_grad():
        hebbian.accumulate(totals, method.net, watched, x.double(), task_id, None)
    assert totals.keys() == expected.keys()
    for name, value in expected.items():
        assert value.max() > 0, name
        torch.testing.assert_close(totals[name] / len(x), value, rtol=1e-6, atol=1e-12, msg=name)


def test_images_on_disk_are_read_a_chunk_at_a_time(monkeypatch):
    """Bit for bit as from memory; the first one read tells the chunk's size."""
    monkeypatch.setitem(importance.CHUNK_FLOATS, "cpu", 0)  # chunks of FEW
    method, _ = tiny_method("mas", mas_local=True)
    task = method.setup.benchmark.tasks[1]
    raw = method.setup.benchmark.train(task).x_raw
    images, few = Counted(raw), importance.FEW
    found, expected = (method.importance_of(x, task) for x in (images, raw))
    assert images.reads == [1, *[few] * (len(raw) // few), len(raw) % few]
    assert all(torch.equal(found[name], value) and value.any() for name, value in expected.items())


def test_an_unknown_layer_is_an_error_that_says_so():
    method, _ = tiny_method("mas", mas_local=True)
    method.net.layers.append(nn.LayerNorm(8))
    method.quadratic.parameters = dict(method.net.named_parameters())
    task = method.setup.benchmark.tasks[0]
    with pytest.raises(UserError, match="--mas_local knows linear"):
        method.importance_of(method.setup.benchmark.train(task).x_raw, task)
