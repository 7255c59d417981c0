"""The examples of a study: which, in which order, with which augmentation."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from engram.backbones.alexnet import IMAGENET
from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.memorization import cli, study_data
from engram.memorization.settings import DATASETS, DataOptions, StudyConfig, scaled
from engram.memorization.subsets import fraction, in_class_range
from engram.utils.config import registry
from engram.utils.config.options import OptionError
from engram.utils.scores import order_hash

CPU = torch.device("cpu")


def test_a_part_of_the_digits_keeps_positions_and_labels():
    source = sources.digits()
    found = study_data.load(DataOptions(class_range="2,7", dataset_size=0.3), CPU)
    labels = source.train_y.numpy()
    expected = in_class_range(labels, 2, 7)
    expected = expected[fraction(labels[expected], 0.3)]
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


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "imagefolder"}))
def test_augmentations_are_those_of_the_benchmarks(name, monkeypatch):
    tiny = sources.digits()
    monkeypatch.setattr(sources, name, lambda data_dir: tiny)
    found = study_data.load(DataOptions(dataset=name), CPU)
    benchmark = registry.load("datasets", study_data.BENCHMARKS.get(name, f"seq-{name}"))
    assert found.augment == getattr(benchmark, "AUGMENT", Augment())
    assert found.augments == (name in ("cifar10", "cifar100", "tinyimagenet"))


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
