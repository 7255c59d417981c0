"""AlexNet: torchvision's numbers, pre-trained weights that are there or not, layers that never learn."""

import copy
import io
import urllib.error

import pytest
import torch

from engram.backbones import alexnet
from engram.backbones.alexnet import AlexNet, Dropout, Options
from engram.models.parts import importance
from engram.utils import seeding
from engram.utils.errors import UserError
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import small_batch, tiny_method
from tests.contract.test_methods import steps, train
from tests.unit.test_backbones import n_parameters, network

SMALL = {"backbone": "alexnet", "width": 0.03}


@pytest.fixture(scope="module")
def theirs():
    """torchvision's network with 7 classes, in eval mode."""
    from torchvision.models import alexnet as original

    with seeding.isolated(0, "test"):
        return original(num_classes=7).eval()


def images(n: int, channels: int, side: int) -> torch.Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "input_size"), [(64, 0), (63, 0), (224, 0), (32, 64), (64, 224)])
def test_equals_torchvisions(theirs, monkeypatch, side, input_size):
    monkeypatch.setattr(alexnet, "imagenet_weights", theirs.state_dict)
    flags = {"pretrained": True, "input_size": input_size}
    ours = network("alexnet", n_classes=7, shape=(3, side, side), **flags).eval()
    assert n_parameters(ours) == n_parameters(theirs) == 57_032_519
    ours.head.load_state_dict(theirs.classifier[6].state_dict())
    x = images(2, 3, side)
    seen = torch.nn.functional.interpolate(x, (input_size,) * 2, mode="bilinear") if input_size else x
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(seen))


@pytest.mark.parametrize("side", [8, 28, 32, 62])
def test_images_too_small_for_its_strides_are_enlarged_to_64(side):
    net = network("alexnet", shape=(1, side, side), width=0.03).eval()
    x = images(2, 1, side)
    enlarged = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear")
    torch.testing.assert_close(net.features(x), net.features(enlarged))


def test_pretrained_weights_need_colour_and_full_width():
    with pytest.raises(UserError, match="for colour images, these have 1 channel"):
        network("alexnet", shape=(1, 28, 28), pretrained=True)
    with pytest.raises(UserError, match=r"of --width 1, not 0.5"):
        Options(pretrained=True, width=0.5)
    with pytest.raises(UserError, match=r"--input_size 32: must be >= 63, or 0"):
        Options(input_size=32)
    with pytest.raises(UserError, match=r"--num_freeze_layers 6: must be <= 5"):
        Options(num_freeze_layers=6)


def no_network(*args, **kwargs):
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02 not weights"])
def test_absent_or_damaged_weights_are_one_error_that_says_what_to_do(folder, monkeypatch, content):
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    file = folder / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if content is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        network("alexnet", pretrained=True, width=1.0, shape=(3, 64, 64))
    message = str(error.value)
    assert "--pretrained: AlexNet's weights could not be loaded" in message and str(file) in message
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in message
    assert ("no route to host" in message) == (content is None)


def test_weights_that_lie_in_place_need_no_network(folder, monkeypatch, theirs):
    from torchvision.models import AlexNet_Weights

    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    file = folder / "hub" / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    small = {name: t[:2] for name, t in theirs.state_dict().items()}
    torch.save(small, file)
    found = alexnet.imagenet_weights()
    assert found.keys() == small.keys()
    assert all(torch.equal(found[name], small[name]) for name in small)


# --- frozen layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_the_first_layers_are_frozen_and_no_others(n):
    net = network("alexnet", shape=(1, 64, 64), width=0.03, num_freeze_layers=n)
    convolutions = [m for m in net.body["features"] if isinstance(m, torch.nn.Conv2d)]
    assert [bool(list(m.parameters())) for m in convolutions] == [i >= n for i in range(5)]
    assert all(not m.weight.requires_grad and not m.bias.requires_grad for m in convolutions[:n])
    free = network("alexnet", shape=(1, 64, 64), width=0.03)
    assert net.state_dict().keys() == free.state_dict().keys(), "weights are exchanged by the same names"
    for name, value in free.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


@pytest.mark.parametrize("model", ["sgd", "mas", "ewc"])
@pytest.mark.parametrize("scenario", ["class-il", "task-il"])
def test_frozen_layers_stay_through_every_task_and_a_checkpoint(model, scenario):
    flags = {**SMALL, "num_freeze_layers": 2, "optim_wd": 0.1, "optim_mom": 0.9}
    method, config = tiny_method(model, scenario, **flags)
    before = {k: v.clone() for k, v in method.net.state_dict().items()}
    frozen = {k for k in before if k.startswith(("body.features.0.", "body.features.3."))}
    assert len(frozen) == 4
    train(method, config)
    method.net.requires_grad_(True)  # what a method may do to its network
    steps(method, config)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = tiny_method(model, scenario, **flags)
    restored.load_state_dict(torch.load(file, weights_only=True))
    steps(restored, config)
    for each in (method, restored):
        after = each.net.state_dict()
        assert all(torch.equal(after[k], before[k]) for k in frozen)
        assert not torch.equal(after["body.features.6.weight"], before["body.features.6.weight"])
        assert not frozen & set(each.trainable())
        assert not frozen & set(importance.shared_parameters(each.net))
        if model != "sgd":
            assert not frozen & set(each.quadratic.importance)
            assert "body.features.6.weight" in each.quadratic.importance


# --- dropout ----------------------------------------------------------------------------------------


def test_dropout_drops_the_share_asked_for_and_keeps_the_mean():
    """50,000 independent inputs: a share further than 5 sigma from p has a chance below 1e-6."""
    with seeding.isolated(0, "test"):
        layer = Dropout(0.3)
    x = torch.ones(50, 1000)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs((y == 0).float().mean().item() - 0.3) < 5 * (0.21 / 50_000) ** 0.5
    assert not torch.equal(layer(x), y), "each call draws its own mask"
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_is_the_seeds_whatever_the_global_generator_does():
    def outputs(seed: int, noise: int) -> list[torch.Tensor]:
        net = network("alexnet", shape=(1, 64, 64), width=0.03, seed=seed)
        torch.manual_seed(noise)
        return [net.features(torch.ones(2, 1, 64, 64)) for _ in range(2)]

    first, again, other = outputs(0, 1), outputs(0, 2), outputs(1, 1)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    before = torch.get_rng_state()
    net = network("alexnet", shape=(1, 64, 64), width=0.03)
    a, b = (each.features(torch.ones(1, 1, 64, 64)) for each in (copy.deepcopy(net), net))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, b), "a copy draws what the original would"


def test_a_checkpoint_continues_with_the_next_mask():
    method, config = tiny_method("sgd", **SMALL, batch_size=8)
    task = method.setup.benchmark.tasks[0]
    batch = small_batch(method, task)

    def one_step(each) -> torch.Tensor:
        each.enter(task)
        each.net.train()
        each.optimizer = build_optimizer(each.trainable().values(), config.train)
        return each.observe(batch)["loss"]

    one_step(method)
    saved = copy.deepcopy(method.state_dict())
    expected = one_step(method)
    restored, _ = tiny_method("sgd", **SMALL, batch_size=8)
    restored.load_state_dict(saved)
    assert torch.equal(one_step(restored), expected)
    restored.load_state_dict(saved)
    for layer in restored.net.modules():
        if isinstance(layer, Dropout):
            layer.n_calls = 0
    assert not torch.equal(one_step(restored), expected), "the test can tell masks apart"


def test_width_scales_every_layer():
    net = network("alexnet", shape=(1, 64, 64), width=0.25)
    assert net.feature_dim == 1024 and isinstance(net, AlexNet)
    ratio = n_parameters(network("alexnet", width=0.5)) / 57_044_810
    assert ratio == pytest.approx(0.25, abs=0.01)
