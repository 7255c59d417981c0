"""Features of a frozen encoder in the images' place: the same R, each image encoded once ever."""

import json
import multiprocessing
import os
import shutil
import signal
import sys

import pytest
import torch
from scipy.stats import binomtest

from engram.datasets.encoding import DrawnViews, Encoder, reason_against, replace_images
from engram.main import main
from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.parts import stored_features
from engram.models.parts.stored_features import with_features
from engram.utils import feature_cache, files, seeding
from engram.utils.config.cli import parse
from engram.utils.errors import UserError
from engram.utils.feature_cache import BLOCK
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


def test_an_encoder_of_which_nothing_learns_is_stored_for_any_method(tmp_path, capsys):
    """--tune head says so; where adapters learn, images stay images."""
    flags = ["--dataset", "seq-digits", "--backbone", "small_vit", "--patch_size", "4", "--embed_dim", "16"]
    flags += ["--num_heads", "2", "--depth", "2"]
    flags += ["--disable_log", "--n_iters", "9", "--lr", "0.05", "--data_dir", str(tmp_path / "data")]
    first = tmp_path / "encoder"
    assert not main(["--model", "joint", *flags, "--savecheck", "last", "--output_dir", str(first)])
    flags += ["--model", "er", "--buffer_size", "50", "--loadcheck", str(next(first.rglob("last.pt")))]
    R = {}
    for cached in ("auto", "off"):
        output = tmp_path / cached
        assert not main([*flags, "--tune", "head", "--cache_features", cached, "--output_dir", str(output)])
        R[cached] = json.loads(next(output.rglob("results.json")).read_text())["class_il"]["R"]
        assert ("features: " in capsys.readouterr().out) == (cached == "auto")
    assert R["auto"] == R["off"]
    method = built(parse([*flags, "--tune", "adapter"]).config)
    assert len(method.benchmark.input_shape) == 3


def test_a_second_run_encodes_nothing(run, monkeypatch):
    first = run("ncm")
    monkeypatch.setattr(
        stored_features, "encode_images", lambda *args: pytest.fail("an image is encoded again")
    )
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
    monkeypatch.setattr(stored_features, "encode_images", lambda *args: pytest.fail("encoded"))
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


VIEWS = ("--augment", "crop_flip", "--cache_views", "2", "--n_epochs", "2")


def test_views_are_encoded_once_and_drawn_by_the_run(run, monkeypatch, capsys):
    first = run("linear_probe", *VIEWS)
    assert "training draws one of 2 augmented views at each visit" in capsys.readouterr().out
    assert first != run("linear_probe", "--augment", "none", "--n_epochs", "2")
    monkeypatch.setattr(stored_features, "encode_images", lambda *args: pytest.fail("encoded again"))
    assert run("linear_probe", *VIEWS) == first != run("linear_probe", *VIEWS, "--seed", "1")
    run("er", *VIEWS, "--buffer_size", "50", "--cache_features", "on")  # its memory holds all views
    run("ncm", *VIEWS)  # takes no step: un-augmented features
    for other in (("--cache_views", "3"), ("--augment", "random_resized_crop"), ("--pixel_std", "2")):
        with pytest.raises(pytest.fail.Exception):
            run("linear_probe", *VIEWS, *other)


def test_a_view_of_each_sample_is_drawn_and_the_first_row_is_un_augmented():
    stored = torch.arange(3.0).expand(3000, 3).unsqueeze(2) + torch.zeros(1, 1, 4)
    views = DrawnViews()
    drawn = views(stored, torch.Generator().manual_seed(0))
    assert drawn.shape == (3000, 4) == (3000, *views.shape_of((3, 4)))
    assert set(drawn[:, 0].tolist()) == {1.0, 2.0} and (drawn == drawn[:, :1]).all()
    assert binomtest(int((drawn[:, 0] == 1).sum()), 3000).pvalue > 1e-5
    assert (views.normalise(stored) == 0).all() and views.draws


def test_stored_views_are_those_of_the_augmentation(tmp_path):
    """Each row is the encoder's answer to a view; here the encoder is a network of known weights."""
    benchmark = tiny_benchmark(tiny_config())
    augment, raw = benchmark.augment, benchmark.samples["train"]
    encoder = Encoder("sum", "fp32", [], 1, lambda x: x.flatten(1).sum(1, keepdim=True))
    replace_images(benchmark, encoder, tmp_path, n_views=2)
    assert augment.draws and benchmark.stored_shape == (3, 1) and benchmark.input_shape == (1,)
    stored = benchmark.samples["train"]
    block = raw[:BLOCK]
    for view in (1, 2):
        expected = encoder.encode(augment(block, seeding.generator(0, "views", view, 0)))
        assert torch.equal(stored[:BLOCK, view], expected)
    assert torch.equal(stored[:, 0], encoder.encode(augment.normalise(raw)))


REFUSED = {
    "not stored": (["--cache_features", "off"], "give --cache_features on"),
    "nothing drawn": (["--augment", "none"], "nothing about training images is drawn"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_views_without_a_meaning_are_refused(case, weights, tmp_path):
    flags, message = REFUSED[case]
    config = parse(["--model", "linear_probe", *FLAGS, "--loadcheck", str(weights), *VIEWS, *flags]).config
    with pytest.raises(UserError, match=f"--cache_views: .*{message}"):
        build_method(config, torch.device("cpu"), proxies.create)
