"""Backbones: sizes known from the literature, initialisation, heads that leave each other alone."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engram.backbones.backbone import build_network, load_weights
from engram.backbones.batch_norm import BatchNorm2d
from engram.backbones.heads import TaskHeads
from engram.utils.config import registry
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import small_batch, tiny_config, tiny_method


def network(name: str, n_classes: int = 10, shape=(3, 32, 32), seed: int = 0, **flags):
    config = tiny_config("sgd", backbone=name, **flags)
    tasks = [SimpleNamespace(classes=tuple(range(n_classes)))]
    benchmark = SimpleNamespace(
        input_shape=shape, scenario="class-il", tasks=tasks, n_classes=n_classes, device="cpu"
    )
    return build_network(name, config.architecture, benchmark, seed)


def n_parameters(net) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 11_173_962), ("resnet34", 21_282_122), ("resnet50", 23_520_842)],  # with the CIFAR stem
)
def test_resnets_have_the_known_sizes(name, expected):
    assert n_parameters(network(name)) == expected


def test_resnet18_equals_torchvisions_with_the_stem_replaced():
    from torchvision.models import resnet18

    ours, theirs = network("resnet18"), resnet18(num_classes=10)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_width_scales_every_layer():
    assert network("resnet18", width=0.25).feature_dim == 128
    ratio = n_parameters(network("resnet18", width=0.5)) / n_parameters(network("resnet18"))
    assert ratio == pytest.approx(0.25, abs=0.01)


def test_mer_network_and_its_xavier_initialisation():
    net = network("mlp", shape=(1, 28, 28), hidden_sizes=(100, 100))
    assert n_parameters(net) == 89_610
    for layer in [m for m in net.modules() if isinstance(m, torch.nn.Linear)]:
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        largest = layer.weight.abs().max().item()
        assert 0.95 * bound < largest <= bound and not layer.bias.any()


def test_an_mlp_with_pytorchs_initialisation():
    """As van de Ven & Tolias 2019: weights and biases within ±1/√fan_in, the head's included."""
    net = network("mlp", shape=(1, 28, 28), hidden_sizes=(100, 100), mlp_init="torch")
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        bound = layer.in_features**-0.5
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound
        assert 0.5 * bound < layer.bias.abs().max().item() <= bound


@pytest.mark.parametrize("name", list(registry.names("backbones")))
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
def test_interface(name, shape):
    own = {"mlp": {"hidden_sizes": (16,)}, "cnn": {"channels": (4, 8)}, "alexnet": {"width": 0.03}}
    own["small_vit"] = {"embed_dim": 12, "depth": 2}
    flags = own.get(name, {"width": 0.1})
    net = network(name, shape=shape, **flags)
    x = torch.rand(3, *shape)
    assert net.features(x).shape == (3, net.feature_dim) and net(x).shape == (3, 10)
    again, other = network(name, shape=shape, **flags), network(name, shape=shape, seed=1, **flags)
    assert torch.equal(net.head.weight, again.head.weight)
    assert not torch.equal(net.head.weight, other.head.weight)


def test_only_the_tasks_own_head_learns_even_with_weight_decay():
    method, config = tiny_method("sgd", "task-il", optim_wd=0.1, batch_size=8)
    before = {k: v.clone() for k, v in method.net.state_dict().items()}
    task = method.setup.benchmark.tasks[1]
    method.enter(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    method.observe(small_batch(method, task))
    changed = {k for k, v in method.net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if not k.startswith("head.heads") or k.startswith("head.heads.1.")}


def test_per_task_loss_is_cross_entropy_over_the_tasks_own_classes():
    method, _ = tiny_method("sgd", "task-il", batch_size=8)
    task = method.setup.benchmark.tasks[2]  # labels 4 and 5
    method.enter(task)
    batch = small_batch(method, task)
    own = method.net.head.heads[2](method.net.features(batch.x))
    torch.testing.assert_close(method.loss(batch), F.cross_entropy(own, batch.y - 4))


def test_heads_over_shared_classes_answer_for_their_own_domain():
    head = TaskHeads(5, [(0, 1, 2)] * 4)
    features, task_id = torch.randn(6, 5), torch.tensor([0, 3, 1, 2, 0, 3])
    expected = torch.stack([head.heads[t](f) for t, f in zip(task_id.tolist(), features, strict=True)])
    torch.testing.assert_close(head(features, task_id), expected)
    with pytest.raises(ValueError, match="need task_id"):
        head(features)


def test_weights_of_another_shape_are_refused_by_name():
    net = network("mlp", shape=(1, 8, 8), hidden_sizes=(10,))
    state = net.state_dict() | {"head.weight": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"1 tensors differ: head.weight"):
        load_weights(net, state)
    counted = net.state_dict() | {"n_batches": torch.tensor(3)}
    with pytest.raises(ValueError, match=r"1 tensors differ: n_batches \(none here, scalar there\)"):
        load_weights(net, counted)


def test_pooling_before_relu_changes_nothing():
    """The usual order, ReLU then pooling, gives the same features and gradients bit for bit."""
    module = registry.load("backbones", "cnn")
    net = module.build(module.Options(channels=(4, 5)), (2, 9, 9), "cnn")
    x = torch.randn(3, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    first, second = (module for module in net.layers if isinstance(module, torch.nn.Conv2d))
    weights = list(net.parameters())
    h = F.max_pool2d(first(x).relu(), 2, ceil_mode=True)
    h = F.max_pool2d(second(h).relu(), 2, ceil_mode=True).mean((2, 3))
    expected = torch.autograd.grad(h.square().sum(), weights)
    found = net.features(x)
    assert torch.equal(found, h)
    for a, b in zip(torch.autograd.grad(found.square().sum(), weights), expected, strict=True):
        assert torch.equal(a, b)


def test_batch_norm_is_pytorchs_without_its_counter():
    """Outputs and averages are the same bits; state by the same names, which older checkpoints have."""
    draws = torch.Generator().manual_seed(0)
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for _ in range(3):
        x = torch.randn(4, 3, 2, 2, generator=draws)
        assert torch.equal(ours(x), theirs(x))
    assert (ours.num_batches_tracked, theirs.num_batches_tracked) == (0, 3)
    state = theirs.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items() if k != "num_batches_tracked")
    ours.load_state_dict(state)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.state_dict().keys() == state.keys() and ours.num_batches_tracked == 3
