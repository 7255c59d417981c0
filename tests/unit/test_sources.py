"""Sources: public sets in their own layouts, and damaged files."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from engram.datasets import image_files, images, sources
from engram.datasets import storage as storages
from engram.datasets.storage import Storage
from engram.utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
USER_DATA = Path("~/.cache/engram").expanduser()
KINDS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
MNIST_BYTES = dict(zip(KINDS, (47040016, 60008, 7840016, 10008), strict=True))


def holds_mnist(data_dir: Path) -> bool:
    """Whether all files are there and whole; a download that failed leaves folders or parts behind."""
    files = {data_dir / "MNIST/raw" / f"{kind}-ubyte": size for kind, size in MNIST_BYTES.items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


def holds_cifar10(data_dir: Path) -> bool:
    """Whether the image folder has all of its 60,000 images."""
    return sum(1 for _ in (data_dir / "cifar10").glob("*/*/*")) == 60_000


MNIST_DIR = next(filter(holds_mnist, (ROOT.parent / "shared/data", USER_DATA)), None)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


# digits


def test_digits_are_scikit_learns_and_read_from_the_cache_afterwards(home, monkeypatch):
    first = sources.digits()
    bunch = load_digits()
    assert (len(first.train_y), len(first.test_y)) == (1437, 360) and first.train_x.dtype == torch.uint8
    pixels = (torch.cat((first.train_x, first.test_x)).flatten(1).double() / 255 * 16).round().int()
    found = zip(pixels.tolist(), torch.cat(first.labels).tolist(), strict=True)
    assert sorted(found) == sorted(zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))
    assert (first.test_y.bincount() - 36).abs().max() <= 1
    monkeypatch.setattr(sources, "_split_digits", lambda: pytest.fail("not from the cache"))
    again = sources.digits()
    assert all(torch.equal(getattr(first, f), getattr(again, f)) for f in images.FIELDS)
    assert again.classes == tuple("0123456789")


# MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_arrays() -> list[np.ndarray]:
    draw = np.random.RandomState(0)
    arrays = []
    for n in (12, 7):
        arrays += [draw.randint(0, 256, (n, 28, 28), dtype=np.uint8), draw.randint(0, 10, n, dtype=np.uint8)]
    return arrays


def mnist_folder(data_dir: Path, name: str = "MNIST") -> Path:
    raw = data_dir / name / "raw"
    raw.mkdir(parents=True)
    for kind, array in zip(KINDS, mnist_arrays(), strict=True):
        (raw / f"{kind}-ubyte").write_bytes(idx(array))
    return raw


@pytest.mark.parametrize(("read", "name"), [(sources.mnist, "MNIST"), (sources.fmnist, "FashionMNIST")])
def test_idx_files_are_read_and_nothing_is_written(home, read, name):
    raw = mnist_folder(home / "data", name)
    source = read(home / "data")
    for found, expected in zip((source.train_x, source.test_x), mnist_arrays()[::2], strict=True):
        assert found.dtype == torch.uint8 and np.array_equal(found[:, 0].numpy(), expected)
    assert source.train_y.dtype == torch.int64
    assert source.train_y.tolist() == mnist_arrays()[1].tolist()
    assert len(source.classes) == 10
    assert sorted(f.name for f in raw.iterdir()) == sorted(f"{kind}-ubyte" for kind in KINDS)
    assert [f.name for f in home.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda c: c[:-1], r"5487 bytes of data, 5488 expected; delete"),
        (lambda c: c + b"x", "5489 bytes of data, 5488 expected; delete"),
        (lambda c: b"", "not an idx file of 3-dimensional bytes; delete"),
        (lambda c: b"\x1f\x8b" + c[2:], "not an idx file"),
        (lambda c: c[:4] + b"\xff" * 12, "0 bytes of data"),
        (lambda c: idx(np.zeros((0, 28, 28), np.uint8)), "0 bytes of data, 0 expected"),
        (lambda c: idx(np.zeros((3, 28, 28), np.uint8)), "t10k-labels-idx1-ubyte: does not fit"),
    ],
)
def test_a_damaged_idx_file_is_named(home, content, message):
    file = mnist_folder(home) / "t10k-images-idx3-ubyte"
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        sources.mnist(home)
    assert str(home / "MNIST/raw/t10k-") in str(caught.value)


@pytest.mark.skipif(MNIST_DIR is None, reason="the real MNIST is not here")
def test_the_real_mnist():
    source = sources.mnist(MNIST_DIR)
    assert source.train_x.shape == (60000, 1, 28, 28) and source.test_x.shape == (10000, 1, 28, 28)
    assert source.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.bincount(source.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(source.train_x.double().mean().item() / 255 - 0.1307) < 1e-4


def test_a_download_that_failed_is_no_mnist(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    assert not holds_mnist(tmp_path)
    for kind, size in MNIST_BYTES.items():
        with open(raw / f"{kind}-ubyte", "wb") as file:
            file.truncate(size)  # without using the disk
    assert holds_mnist(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"half")
    assert not holds_mnist(tmp_path)


# CIFAR


def cifar_batches(folder: Path) -> dict:
    """CIFAR-10's files with two images of each class in each; returns what torchvision is to expect."""
    folder.mkdir(parents=True)
    draw, listed = np.random.RandomState(0), []
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        labels = draw.permutation(20) % 10
        data = draw.randint(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels.tolist()}))
        listed.append([name, md5(folder / name)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    return {"train_list": listed[:2], "test_list": listed[2:], "meta": meta}


@pytest.fixture
def cifar(home, monkeypatch) -> Path:
    """CIFAR-10 as torchvision unpacks it, under home/data."""
    folder = home / "data/cifar-10-batches-py"
    for name, value in cifar_batches(folder).items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    return folder


def check_cifar(source: sources.Source, batches: Path) -> None:
    read = [pickle.loads((batches / f"data_batch_{i}").read_bytes()) for i in (1, 2)]
    pixels = np.concatenate([r["data"] for r in read]).reshape(-1, 3, 32, 32)
    assert np.array_equal(source.train_x.numpy(), pixels)
    assert source.train_y.tolist() == read[0]["labels"] + read[1]["labels"]
    assert source.test_x.shape == (20, 3, 32, 32) and source.classes[3] == "class 3"


def test_cifar_batches_are_read_once_then_from_the_cache(cifar, monkeypatch):
    check_cifar(sources.cifar10(cifar.parent), cifar)
    monkeypatch.setattr(sources, "_read_batches", lambda *_: pytest.fail("read again"))
    check_cifar(sources.cifar10(cifar.parent), cifar)


def test_a_damaged_cifar_batch_is_named_and_never_unpickled(cifar, monkeypatch):
    (cifar / "data_batch_2").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(
        DataError, match=r"data_batch_2: missing or damaged \(MD5\); delete .*cifar-10-batches-py"
    ):
        sources.cifar10(cifar.parent)


def image_folder(root: Path, n_classes: int, side: int) -> None:
    for split in ("train", "test"):
        for c in range(n_classes):
            folder = root / split / f"c{c:03}"
            folder.mkdir(parents=True)
            Image.new("RGB", (side, side), (c, 0, 0)).save(folder / "0.png")


def test_cifar_as_an_image_folder(home):
    image_folder(home / "cifar100", 100, 32)
    source = sources.cifar100(home)
    assert source.train_x[:, 0, 0, 0].tolist() == source.train_y.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("n_classes", "side", "message"),
    [
        (10, 16, r"0\.png: 16x16 pixels where 32x32 is expected; replace it"),
        (9, 32, "10 classes expected, 9 found"),
    ],
)
def test_an_image_folder_that_is_no_cifar(home, n_classes, side, message):
    image_folder(home / "cifar10", n_classes, side)
    with pytest.raises(DataError, match=message):
        sources.cifar10(home)


@pytest.mark.skipif(not holds_cifar10(USER_DATA), reason="the real CIFAR-10 is not here")
def test_the_real_cifar10():
    source = sources.cifar10(USER_DATA)
    assert source.train_x.shape == (50000, 3, 32, 32) and source.test_x.shape == (10000, 3, 32, 32)
    assert (
        source.train_y[:5].tolist() == [6, 9, 9, 4, 1]
        and torch.bincount(source.test_y).tolist() == [1000] * 10
    )
    assert (
        source.train_x[::10].float().mean((0, 2, 3)) / 255 - torch.tensor([0.491, 0.482, 0.446])
    ).abs().max() < 0.01


# Tiny-ImageNet


def tiny_layout(root: Path, n_classes: int = 200) -> Path:
    """The official layout: two training images of each class, one validation image; some are grey."""
    names = [f"n{9999 - c:08}" for c in range(n_classes)]  # listed in descending order
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(names))
    (root / "val/images").mkdir(parents=True)
    rows = []
    for c, name in enumerate(names):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{name}_boxes.txt").write_text("not an image")
        Image.new("L" if c % 2 else "RGB", (64, 64), c).save(folder / f"{name}_0.JPEG")
        Image.new("RGB", (64, 64), 0x010101 * c).save(folder / f"{name}_1.JPEG")
        Image.new("RGB", (64, 64), 0x010101 * c).save(root / f"val/images/val_{c}.JPEG")
        rows.append(f"val_{c}.JPEG\t{name}\t0\t0\t62\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(rows))
    return root


def test_tiny_imagenet_in_its_own_layout(home):
    root = tiny_layout(home / "tiny-imagenet-200")
    source = sources.tinyimagenet(home)
    assert source.train_x.shape == (400, 3, 64, 64) and source.test_x.shape == (200, 3, 64, 64)
    assert source.classes == tuple((root / "wnids.txt").read_text().split())
    assert source.train_y.tolist() == [c for c in range(200) for _ in range(2)]
    # The validation image of class c has brightness c: its label must come from the annotations.
    assert (source.test_y - source.test_x[:, 1, 5, 5].long()).abs().max() <= 2
    grey = source.train_x[2]  # class 1 is stored grey
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_tiny_imagenets_classes_are_numbered_as_wnids_txt_lists_them(home, where):
    """Also where its images had been decoded when classes were numbered alphabetically."""
    root = tiny_layout(home / "tiny-imagenet-200")
    names = [f"n{c:08}" for c in np.random.RandomState(0).permutation(range(9800, 10000))]
    (root / "wnids.txt").write_text("\n".join(names))
    storage = Storage(where, data_dir=str(home))
    alphabetical = storages.read_folder(root, image_files.list_tiny_imagenet(root), storage, side=64)
    assert list(alphabetical["classes"]) == sorted(names)
    source = sources.tinyimagenet(home, storage)
    assert source.classes == tuple(names)
    assert source.train_y.tolist() == [c for c in range(200) for _ in range(2)]
    assert [names[y] for y in source.test_y] == [f"n{9999 - c:08}" for c in range(200)]
    assert (source.test_x.index_select(0, torch.tensor([7])).float() - 7).abs().max() <= 2, (
        "images stay where they are"
    )


def test_an_image_folder_of_tiny_imagenet_stays_alphabetical(home):
    tiny_layout(home / "official")
    for split, pattern in (("train", "train/*/images/*_1.JPEG"), ("test", "train/*/images/*_0.JPEG")):
        for path in (home / "official").glob(pattern):
            target = home / "tinyimagenet" / split / path.parents[1].name / path.name
            target.parent.mkdir(parents=True)
            path.rename(target)
    source = sources.tinyimagenet(home)
    assert list(source.classes) == sorted(source.classes) and source.train_y.tolist() == list(range(200))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("wnids.txt", None, r"wnids\.txt: unreadable"),
        (
            "wnids.txt",
            "n00009999\nn12345678\n",
            r"train/n12345678/images: no such folder; the data set is incompl",
        ),
        ("val/val_annotations.txt", None, r"val_annotations\.txt: unreadable"),
        ("val/val_annotations.txt", "val_0.JPEG n00009999\n", r"val_annotations\.txt: damaged"),
        ("val/images/val_1.JPEG", None, r"val_1\.JPEG: no such file"),
        ("train/n00009998/images/n00009998_1.JPEG", "", r"n00009998_1\.JPEG: not a readable image"),
    ],
)
def test_an_incomplete_tiny_imagenet(home, file, content, message):
    root = tiny_layout(home / "tiny-imagenet-200", n_classes=2)
    (root / file).unlink() if content is None else (root / file).write_text(content)
    with pytest.raises(DataError, match=message):
        sources.tinyimagenet(home)


def test_a_user_without_home_has_no_cache_and_still_gets_the_digits(monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert images.cache_folder() is None
    assert len(sources.digits().train_y) == 1437
