"""The examples of a study: which, in which order, with which augmentation."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from engram.backbones.alexnet import IMAGENET
from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.memorization import cli, study_data
from engram.memorization.figures import draw_galleries
from engram.memorization.settings import DATASETS, DataOptions, StudyConfig, scaled
from engram.memorization.train_splits import SplitsConfig
from engram.memorization.training import build_network
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.config.options import OptionError
from engram.utils.errors import UserError
from engram.utils.scores import drawn_fraction, in_class_range, order_hash
from engram.utils.terminal import say_once

CPU = torch.device("cpu")


def test_a_part_of_the_digits_keeps_positions_and_labels():
    source = sources.digits()
    found = study_data.load(DataOptions(class_range="2,7", dataset_size=0.3), CPU)
    labels = source.train_y.numpy()
    expected = in_class_range(labels, 2, 7)
    expected = expected[drawn_fraction(labels[expected], 0.3, "")]
    assert found.index.tolist() == expected.tolist() and len(found) == len(expected)
    assert torch.equal(found.images, source.train_x[torch.from_numpy(found.index)])
    assert set(found.labels.tolist()) == {2, 3, 4, 5, 6} == set(found.test_labels.tolist())
    assert found.n_classes == 7 and found.n_source == len(labels)
    assert found.order_hash == order_hash(source.train_y), "that of the whole set: scores fit every run"
    assert not found.augments


def test_an_image_folder_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("test", 2)):
        for name in ("cats", "dogs"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    folders = {"image_dir": str(tmp_path), "data_dir": str(tmp_path)}
    found = study_data.load(DataOptions(dataset="imagefolder", **folders), CPU)
    assert found.images.shape == (12, 3, 16, 16) and found.test_images.shape == (4, 3, 16, 16)
    assert found.class_names == ("cats", "dogs") and found.augment.crop_padding == 2 and found.augments


def same_as_mains(found: study_data.StudyData, flags: dict[str, object]) -> None:
    """The examples of a study are main.py's, in its order: scores then belong to its runs."""
    config = resolve([("test", {"model": "sgd", "backbone": "mlp", "n_tasks": 1, **flags})])
    benchmark = registry.load("datasets", config.run.dataset).build(config, CPU)
    assert found.order_hash == benchmark.order_hash and found.n_source == benchmark.n_train
    (batch,) = benchmark.batches(benchmark.tasks[0], 0, len(found))
    rows = torch.from_numpy(found.index)[batch.index]
    torch.testing.assert_close(found.batch(rows.view(1, -1), None)[0], found.augment.normalise(batch.x_raw))
    assert torch.equal(found.images[rows], batch.x_raw) and torch.equal(found.labels[rows], batch.y)


@pytest.mark.parametrize("given", ["pictures", "pictures/split.csv", "pictures/plain.csv"])
def test_class_folders_and_tables_are_read_as_main_does(given, tmp_path, capsys):
    rng, root = np.random.default_rng(0), tmp_path / "pictures"
    lines = []
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
            lines.append(f"{name}/{i}.png,{name},{'test' if i % 3 == 0 else 'train'}")
    (root / "split.csv").write_text("\n".join(["path,label,split", *lines]))
    (root / "plain.csv").write_text("\n".join(["path,label", *(line.rpartition(",")[0] for line in lines)]))
    flags = {
        "image_dir": str(tmp_path / given),
        "data_dir": str(tmp_path),
        "test_share": 0.3,
        "split_seed": 5,
    }
    say_once.cache_clear()
    found = study_data.load(DataOptions(dataset="imagefolder", **flags), CPU)
    n_test = 8 if "split" in given else 6
    assert (len(found), len(found.test_labels)) == (20 - n_test, n_test)
    assert ("data:    14 training and 6 test images" in capsys.readouterr().err) == ("split" not in given)
    same_as_mains(found, {"dataset": "seq-imagefolder", **flags})


@pytest.mark.parametrize("shape", [(5,), (6, 6, 3)])
def test_arrays_of_ones_own(shape, tmp_path, capsys):
    """Vectors of floats, standardised as main.py does, and colour images."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 12), ("test", 6)):
        x = rng.normal(3, 2, (n, *shape)).astype(np.float32)
        arrays |= {f"{split}_x": x if len(shape) == 1 else (20 * abs(x)).astype(np.uint8)}
        arrays |= {f"{split}_y": np.arange(n) % 3}
    np.savez(tmp_path / "own.npz", **arrays)
    say_once.cache_clear()
    found = study_data.load(DataOptions(dataset="arrays", arrays=str(tmp_path / "own.npz")), CPU)
    assert found.images.shape == (12, *(shape if len(shape) == 1 else (3, 6, 6))) and not found.augments
    assert capsys.readouterr().err.startswith("data:    ")
    same_as_mains(found, {"dataset": "seq-arrays", "arrays": str(tmp_path / "own.npz")})
    settings = json.dumps({"dataset": "arrays", "arrays": str(tmp_path / "own.npz")})
    content = {**found.identity(), "scores": rng.random(12), "settings": settings}
    drawn = draw_galleries(content, str(tmp_path))
    assert set(drawn) == (set() if len(shape) == 1 else {"gallery"}), "a vector is no picture"
    if len(shape) == 1:
        config = cli.parse("test", "", StudyConfig, ["--backbone", "cnn"])
        with pytest.raises(UserError, match="cnn takes images, and samples are vectors of 5: use mlp"):
            build_network(config, found, 0)
    with pytest.raises(OptionError, match="--arrays is missing"):
        DataOptions(dataset="arrays")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "imagefolder", "arrays"}))
def test_augmentations_are_those_of_the_benchmarks(name, monkeypatch):
    tiny = sources.digits()
    monkeypatch.setattr(sources, name, lambda data_dir: tiny)
    found = study_data.load(DataOptions(dataset=name), CPU)
    benchmark = registry.load("datasets", study_data.BENCHMARKS.get(name, f"seq-{name}"))
    assert found.augment == getattr(benchmark, "AUGMENT", Augment())
    assert found.augments == (name in ("cifar10", "cifar100", "tinyimagenet"))
    plain = study_data.load(DataOptions(dataset=name, augment="none"), CPU)
    assert not plain.augments and (plain.augment.mean, plain.augment.std) == (
        found.augment.mean,
        found.augment.std,
    )


def test_a_study_from_before_the_flag_was_made_with_its_default(tmp_path):
    (tmp_path / "settings.json").write_text('{"dataset": "digits", "stack": 2}')
    flags = ["--weights_dir", str(tmp_path)]
    assert cli.parse("train_splits", "", SplitsConfig, flags).data.augment is None
    with pytest.raises(
        OptionError, match="--augment none: the networks in --weights_dir were trained with No"
    ):
        cli.parse("train_splits", "", SplitsConfig, [*flags, "--augment", "none"])


@pytest.mark.parametrize("pretrained", [False, True])
def test_pretrained_weights_see_images_normalised_as_imagenets(pretrained, monkeypatch):
    raw = torch.randint(256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.tensor([0, 0, 1, 1])
    tiny = sources.Source("cifar10", raw, labels, raw, labels, ("a", "b"))
    monkeypatch.setattr(sources, "cifar10", lambda data_dir: tiny)
    found = study_data.load(DataOptions(dataset="cifar10"), CPU, IMAGENET if pretrained else None)
    own = registry.load("datasets", "seq-cifar10").AUGMENT
    mean, std = IMAGENET if pretrained else (own.mean, own.std)
    expected = torchvision.transforms.functional.normalize(raw / 255, mean, std)
    torch.testing.assert_close(found.batch(torch.arange(4).view(1, 4), None)[0], expected)
    assert (found.augment.crop_padding, found.augment.flip) == (own.crop_padding, own.flip)


@pytest.mark.parametrize("flags", [["alexnet", "--pretrained"], ["alexnet"], ["mlp"]])
def test_a_backbone_says_whether_its_weights_are_pretrained(flags):
    config = cli.parse("test", "", StudyConfig, ["--backbone", *flags])
    assert config.pixels == (IMAGENET if "--pretrained" in flags else None)


def test_examples_at_given_positions():
    found = study_data.load(DataOptions(dataset_size=0.05), CPU)
    rows = np.random.default_rng(0).permutation(len(found))[:9]
    subset = found.at(found.index[rows])
    assert torch.equal(subset.images, found.images[rows]) and torch.equal(subset.labels, found.labels[rows])
    assert subset.index.tolist() == found.index[rows].tolist() and len(subset) == 9


def test_width_scales_whatever_a_backbone_has():
    options = {name: registry.load("backbones", name).Options for name in ("mlp", "cnn", "resnet18")}
    assert scaled(options["mlp"](hidden_sizes=(100, 50)), 0.5).hidden_sizes == (50, 25)
    assert scaled(options["cnn"](channels=(4, 6)), 2).channels == (8, 12)
    assert scaled(options["resnet18"](width=0.5), 0.5).width == 0.25
    with pytest.raises(OptionError, match="--model_width 2: this backbone has no width"):
        scaled(DataOptions(), 2)
