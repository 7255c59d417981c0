"""Networks of timm and torchvision: their own forward, their weights, the errors of wrong names and files."""

import builtins
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from engram.backbones.pretrained_weights import read_file, resized_positions
from engram.main import main
from engram.utils.config import registry
from engram.utils.errors import UserError
from tests.unit.test_backbones import network

timm = pytest.importorskip("timm")
VIT, CONVOLUTIONAL = "timm:vit_tiny_patch16_224", "timm:tf_efficientnet_lite0"


def pixels(n=2, channels=3, side=40):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_torchvisions_forward(name):
    """The features are what torchvision's classifier sees, whatever it is called."""
    net = network(f"torchvision:{name}").eval()
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name).eval()
    last = [m for m in whole.modules() if isinstance(m, torch.nn.Linear)][-1]
    whole.load_state_dict(net.body.state_dict(), strict=False)
    assert net.feature_dim == last.in_features
    with torch.no_grad():
        torch.testing.assert_close(last(net.features(pixels())), whole(pixels()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [VIT, CONVOLUTIONAL, "timm:mobilenetv3_small_050", "timm:resnet10t"])
def test_timms_forward(name):
    net = network(name).eval()
    whole = timm.create_model(name.partition(":")[2], num_classes=7).eval()
    whole.load_state_dict(net.body.state_dict(), strict=False)
    x = pixels(side=224 if name == VIT else 40)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(x), pre_logits=True)
        torch.testing.assert_close(net.features(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, net.feature_dim)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "-wrapped.pth"])
@pytest.mark.parametrize("name", [VIT, "timm:mobilenetv3_small_050", "torchvision:mobilenet_v3_small"])
def test_weights_of_a_file(name, suffix, tmp_path):
    given = network(name, seed=1)
    state = {k: v.contiguous() for k, v in given.body.state_dict().items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state} if "wrapped" in suffix else state, file)
    loaded = network(name, seed=0, pretrained=str(file)).body.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_transformers_take_images_of_another_size(tmp_path):
    file = tmp_path / "weights.safetensors"
    given = network(VIT, seed=1)
    save_file({k: v.contiguous() for k, v in given.body.state_dict().items()}, file)
    small = network(VIT, pretrained=str(file), input_size=48)
    assert small.features(pixels()).shape == (2, 192) and small.body.pos_embed.shape[1] == 1 + 9
    resized = resized_positions(given.body.pos_embed, (14, 14), (3, 3))
    assert torch.equal(small.body.pos_embed, resized)
    assert torch.equal(small.body.blocks[3].mlp.fc1.weight, given.body.blocks[3].mlp.fc1.weight)


def test_an_encoder_that_learned_in_a_run_starts_another(tmp_path):
    """The file of --savecheck, of images of 48 pixels: the same network there, resized for another side."""
    flags = ["--dataset=seq-digits", "--backbone=timm:test_vit", "--disable_log", "--debug_mode=1"]
    assert (
        main(["--model=joint", *flags, "--input_size=48", "--savecheck=last", f"--output_dir={tmp_path}"])
        == 0
    )
    (file,) = tmp_path.glob("*/joint/*/weights/last.pt")
    learned = torch.load(file, weights_only=True)["net"]
    same = network("timm:test_vit", pretrained=str(file), input_size=48).body.state_dict()
    assert same and all(torch.equal(value, learned[f"body.{name}"]) for name, value in same.items())
    larger = network("timm:test_vit", pretrained=str(file), input_size=64).body
    assert torch.equal(larger.pos_embed, resized_positions(learned["body.pos_embed"], (3, 3), (4, 4)))


def test_position_embeddings_are_resized_bicubically_without_antialiasing():
    """A class token stays; a plane in the coordinates stays that plane; Keys' kernel (a = -0.75) by hand."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    plane = torch.stack([2 * rows + columns, torch.ones(6, 6)], -1).view(1, 36, 2)
    token = torch.tensor([[[7.0, -7.0]]])
    resized = resized_positions(torch.cat([token, plane], 1), (6, 6), (6, 6))
    assert torch.equal(resized, torch.cat([token, plane], 1))
    halved = resized_positions(torch.cat([token, plane], 1), (6, 6), (3, 3))[:, 1:].view(3, 3, 2)
    a, t = -0.75, 0.5  # each new point lies half way between two old ones
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (1 + t) ** 3 - 5 * a * (1 + t) ** 2 + 8 * a * (1 + t) - 4 * a
    line = torch.tensor([far, near, near, far])
    expected = plane.view(6, 6, 2)[1:5, 1:5, 0]
    torch.testing.assert_close(halved[1, 1, 0], line @ expected @ line)
    torch.testing.assert_close(halved[..., 1], torch.ones(3, 3))


def test_images_are_brought_to_the_networks_side_and_grey_ones_are_repeated():
    net = network("torchvision:resnet18", shape=(1, 8, 8), input_size=32).eval()
    x = pixels(channels=1, side=8)
    larger = F.interpolate(x, (32, 32), mode="bicubic", antialias=True, align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(net.features(x), net.body(larger.repeat(1, 3, 1, 1)))
    assert len(net.notes) == 2


@pytest.mark.parametrize("name", ["torchvision:efficientnet_b0", "torchvision:mobilenet_v3_small"])
def test_training_passes_draw_nothing(name):
    net = network(name).train()
    before = torch.get_rng_state()
    assert torch.equal(net.features(pixels()), net.features(pixels()))
    assert torch.equal(before, torch.get_rng_state())


def test_pixels_are_normalised_as_the_weights_want(tmp_path):
    options = registry.load("backbones", VIT).Options
    (tmp_path / "w.pth").touch()
    assert options().pixels(VIT) is None
    assert options(pretrained=str(tmp_path / "w.pth")).pixels(VIT) == ((0.5,) * 3, (0.5,) * 3)
    tagged = options(pretrained="IMAGENET1K_V1").pixels("torchvision:resnet18")
    assert tagged == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["timm:vit_tiny_patch16_225"], "there is no such network; did you mean vit_tiny_patch16_224"),
        (["torchvision:resnet19"], "there is no such network; did you mean resnet18"),
        (["torchvision:"], "expected torchvision:NAME"),
        (["torchvision:alexnet"], "does not take images of 8x8 (Given input size: (64x1x1)."),
        (["torchvision:squeezenet1_0"], "its classifier is no linear layer"),
        (["torchvision:resnet18", "--pretrained", "V3"], "for resnet18: default, IMAGENET1K_V1"),
        ([VIT, "--pretrained", "nothing"], "timm has for vit_tiny_patch16_224: "),
        ([VIT, "--pretrained", "missing.pth"], "there is no such file"),
        ([VIT, "--pretrained", "tests/unit"], "tests/unit: is a folder; expected a file"),
        (["timm:swin_tiny_patch4_window7_224", "--input_size", "32"], "takes images of its own size only"),
    ],
)  # fmt: skip
def test_wrong_names_are_one_line(flags, message, capsys, tmp_path):
    command = ["--model", "sgd", "--dataset", "seq-digits", "--disable_log", "--output_dir", str(tmp_path)]
    assert main([*command, "--backbone", *flags]) != 0
    assert message in capsys.readouterr().err


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (builtins.exec, ("raise SystemExit('code of a pickle was run')",))


@pytest.mark.parametrize("content", [b"", b"noise", pickle.dumps(Harmful()), pickle.dumps({"a": 1})])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights(content, suffix, tmp_path):
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"w.(pth|safetensors): (cannot be read as|holds no) weights"):
        read_file(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file_is_called_so(suffix, tmp_path):
    (tmp_path / f"w{suffix}").touch()
    with pytest.raises(UserError, match=r"cannot be read as weights \(the file is empty\)"):
        read_file(tmp_path / f"w{suffix}")


def test_weights_of_another_network(tmp_path):
    file = tmp_path / "w.pth"
    torch.save(network("torchvision:resnet18").body.state_dict(), file)
    for name in ("torchvision:resnet34", VIT):
        with pytest.raises(UserError, match="weights of another network"):
            network(name, pretrained=str(file))
    image = tmp_path / "ViT.npz"
    np.savez(image, **{"embedding/kernel": np.zeros((16, 16, 3, 192))})
    with pytest.raises(UserError, match="could not be loaded"):
        network(VIT, pretrained=str(image))
