"""Direct layers: the numbers and gradients of the modules, bit for bit, and the modules where they matter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.parametrizations import spectral_norm

from engram.backbones.direct_layers import DirectLayers
from engram.backbones.heads import SharedHead, TaskHeads
from engram.backbones.mlp import MLP

X, Y = torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2])


def network(hidden: tuple[int, ...] = (7, 6)) -> MLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(12, hidden).attach(SharedHead(hidden[-1] if hidden else 12, 4))


def modules_of(net: MLP) -> nn.Sequential:
    return nn.Sequential(*net.layers, net.head)


def calls_of(net: MLP, monkeypatch) -> list[nn.Module]:
    """The linear layers whose `forward` is called from now on."""
    called, plain = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: called.append(layer) or plain(layer, x))
    return called


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6, 5)])
def test_outputs_and_gradients_are_the_modules_without_calling_them(hidden, monkeypatch):
    net = network(hidden)
    x = X.clone().requires_grad_()
    loss = F.cross_entropy(modules_of(net)(x), Y)
    expected = torch.autograd.grad(loss, [x, *net.parameters()])
    called = calls_of(net, monkeypatch)
    found = torch.autograd.grad(F.cross_entropy(net(x), Y), [x, *net.parameters()])
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, expected, strict=True))
    assert torch.equal(
        net.features(X), net.layers[:0](X).flatten(1) if not hidden else modules_of(net)[:-1](X)
    )
    assert bool(called) == bool(hidden)  # by the line above alone


def test_a_hook_is_called_whenever_it_was_registered_and_then_no_more():
    net, seen = network(), []
    net(X)
    for layer in (net.layers, net.layers[0], net.layers[3], net.layers[4], net.head):
        for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
            handle = register(lambda layer, *given: seen.append(layer))
            net(X)
            assert seen == [layer]
            handle.remove()
            seen.clear()
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *given: seen.append(layer))
    net(X)
    handle.remove()
    assert net.layers[1] in seen and net.head in seen


def test_a_gradient_hook_of_a_layer_is_called():
    net, seen = network(), []
    net(X)
    net.layers[3].register_full_backward_hook(lambda layer, *gradients: seen.append(layer))
    net(X).sum().backward()
    assert seen == [net.layers[3]]


def test_replaced_modules_and_parameters_are_used():
    net = network()
    net(X)
    with torch.no_grad():
        net.layers[1].weight = nn.Parameter(2 * net.layers[1].weight)
        assert torch.equal(net(X), modules_of(net)(X))
        net.layers[2] = nn.Tanh()
        assert torch.equal(net(X), modules_of(net)(X))
        net.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU())
        assert torch.equal(net(X), modules_of(net)(X))
        net.head = SharedHead(6, 9)
        assert net(X).shape == (5, 9)
        net.head = TaskHeads(6, [(0, 1), (2, 3)])
        assert torch.equal(net(X, Y), net.head(net.layers(X), Y))
    changed = network()
    spectral_norm(changed.layers[1])
    assert torch.equal(changed.eval()(X), modules_of(changed)(X))


def test_a_copy_computes_with_its_own_parameters():
    net = network()
    net(X)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.layers[3].weight.zero_()
        other.head.bias.fill_(3)
    assert torch.equal(other(X), modules_of(other)(X)) and not torch.equal(other(X), net(X))


def test_functions_of_other_parameters_and_their_derivatives():
    net = network()
    net(X)
    values = {name: 0.5 * p.detach() for name, p in net.named_parameters()}

    def loss(values, x, y):
        return F.cross_entropy(functional_call(net, values, (x[None],)), y[None])

    with torch.no_grad():
        halved = copy.deepcopy(net)
        halved.load_state_dict(values)
    found = vmap(grad(loss), in_dims=(None, 0, 0))(values, X, Y)
    F.cross_entropy(modules_of(halved)(X), Y, reduction="sum").backward()
    for name, p in halved.named_parameters():
        torch.testing.assert_close(found[name].sum(0), p.grad)


def test_a_subclass_or_other_features_are_not_passed_over():
    class Doubled(MLP):
        def features(self, x):
            return 2 * super().features(x)

    net = Doubled(12, (7,)).attach(SharedHead(7, 4))
    assert torch.equal(net(X), net.head(2 * net.layers(X)))
    net = network()
    net.features = lambda x: 3 * net.layers(x)
    assert torch.equal(net(X), net.head(3 * net.layers(X)))


def test_precision_applies():
    net = network()
    net.precision = "bf16"
    assert torch.equal(net(X), net.head(net.features(X)))
    assert not torch.equal(net(X), modules_of(net)(X))


def test_modules_are_looked_at_again_only_when_something_has_changed(monkeypatch):
    net, looks = network(), []
    plain = DirectLayers._check
    monkeypatch.setattr(DirectLayers, "_check", lambda self: looks.append(1) or plain(self))
    for _ in range(3):
        net(X)
    assert len(looks) == 1
