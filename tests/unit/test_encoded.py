"""Features of a frozen encoder in the images' place: the same R, each image encoded once ever."""

import json
import multiprocessing
import os
import shutil
import signal
import sys

import pytest
import torch

from engram.datasets.encoded import reason_against
from engram.main import main
from engram.models.parts import encoded
from engram.models.parts.encoded import with_features
from engram.utils import feature_cache, files
from engram.utils.errors import UserError
from tests.conftest import built, tiny_benchmark, tiny_config
from tests.waiting import LIMIT

FLAGS = ("--dataset", "seq-digits", "--backbone", "cnn", "--channels", "4,8", "--disable_log")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network's weights, trained for a second: an encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    assert not main(
        ["--model", "joint", *FLAGS, "--n_epochs", "5", "--savecheck", "last", "--output_dir", str(folder)]
    )
    return next(folder.rglob("last.pt"))


@pytest.fixture
def run(weights, tmp_path):
    """run(model, *flags) → R of a run on the encoder."""

    def start(model, *flags):
        output = tmp_path / "runs"
        shutil.rmtree(output, ignore_errors=True)
        where = ("--output_dir", str(output), "--data_dir", str(tmp_path / "data"))
        assert not main(["--model", model, *FLAGS, "--loadcheck", str(weights), *where, *flags])
        return json.loads(next(output.rglob("results.json")).read_text())["class_il"]["R"]

    return start


@pytest.mark.parametrize("model", ["ncm", "ridge", "linear_probe"])
def test_results_are_those_of_a_run_that_encodes_images_itself(model, run):
    assert run(model) == run(model, "--cache_features", "off")


MOMENTS = ("before a block is written", "in the middle of its file", "before the file has its name")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill_while_encoding_loses_one_block_at_most(moment, run, tmp_path):
    whole, features = run("ncm"), tmp_path / "data" / "features"
    expected = {path.relative_to(features): path.read_bytes() for path in features.rglob("*.f32")}
    shutil.rmtree(features)
    process = multiprocessing.get_context("fork").Process(target=killed_in_third_block, args=(moment, run))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    left = {path.relative_to(features): path.read_bytes() for path in features.rglob("*.f32")}
    assert len(left) == 2 and left.items() <= expected.items()
    assert run("ncm") == whole
    assert {path.relative_to(features): path.read_bytes() for path in features.rglob("*.f32")} == expected


def killed_in_third_block(moment, run):
    """A run in a process of its own that ends by SIGKILL at a moment of its third block."""
    write = feature_cache.write_block
    sys.stdout = sys.stderr = open(os.devnull, "w")

    def dying(path, block):
        if path.name != "block-00002.f32":
            write(path, block)
            return
        if moment == MOMENTS[1]:
            with files.replacing(path) as temporary:
                temporary.write_bytes(block.tobytes()[: block.nbytes // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        elif moment == MOMENTS[2]:
            files.put_in_place = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
            write(path, block)
        os.kill(os.getpid(), signal.SIGKILL)

    feature_cache.write_block = dying
    run("ncm")
    os._exit(0)


def test_images_of_another_size_are_encoded_at_that_size(run):
    size = ("--img_size", "16", "--test_resize", "18")
    assert run("ncm", *size) == run("ncm", *size, "--cache_features", "off") != run("ncm")


def test_a_second_run_encodes_nothing(run, monkeypatch):
    first = run("ncm")
    monkeypatch.setattr(encoded, "encode_images", lambda *args: pytest.fail("an image is encoded again"))
    assert run("ncm", "--seed", "0") == first
    run("ridge", "--permute_classes", "--seed", "1")  # another method, seed and class order
    with pytest.raises(pytest.fail.Exception):
        run("ncm", "--pixel_mean", "0.5")
    with pytest.raises(pytest.fail.Exception):
        run("ncm", "--precision", "bf16")
    with pytest.raises(pytest.fail.Exception):
        run("ncm", "--img_size", "16")


def test_other_weights_and_other_images_have_other_features(run, monkeypatch, weights, tmp_path):
    run("ncm")
    changed = torch.load(weights, weights_only=True)
    name = next(n for n, t in changed["net"].items() if t.is_floating_point() and not n.startswith("head."))
    changed["net"][name].view(-1)[0] += 1e-3
    other = tmp_path / "other.pt"
    torch.save(changed, other)
    monkeypatch.setattr(encoded, "encode_images", lambda *args: pytest.fail("encoded"))
    with pytest.raises(pytest.fail.Exception):
        run("ncm", "--loadcheck", str(other))


def test_a_replay_method_trains_the_head_alone_on_features(run, capsys):
    cached = run("er", "--cache_features", "on", "--buffer_size", "200", "--n_epochs", "3")
    assert sum(cached[-1]) / len(cached[-1]) > 0.5  # chance is 0.1
    assert "features: " in capsys.readouterr().out
    method = built(tiny_config("er", buffer_size=10, backbone="cnn", cache_features="on"))
    assert all(name.startswith("head.") for name in method.trainable())
    assert method.benchmark.input_shape == (method.net.feature_dim,)


def test_where_features_cannot_take_the_images_place():
    permuted = tiny_benchmark(tiny_config(), "domain-il")
    assert reason_against(permuted, takes_steps=False) == "every task changes the images"
    augmented = tiny_benchmark(tiny_config())
    assert "--augment none" in reason_against(augmented, takes_steps=True)
    assert not reason_against(augmented, takes_steps=False)
    with pytest.raises(UserError, match="--cache_features on: the samples are no images"):
        encoded_twice = built(tiny_config("er", buffer_size=10, backbone="cnn", cache_features="on"))
        with_features(
            encoded_twice.benchmark, encoded_twice.net, tiny_config(cache_features="on"), type(encoded_twice)
        )


def test_random_weights_are_not_cached_by_themselves():
    method = built(tiny_config("ncm", backbone="cnn"))
    assert len(method.benchmark.input_shape) == 3
