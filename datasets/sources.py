"""Sources: the data sets by name; each is downloaded, verified and decoded once, into uint8 tensors."""

import http.client
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram.datasets import image_files, images
from engram.datasets.images import Decoded
from engram.datasets.storage import Storage, read_folder
from engram.utils.errors import DataError

TINY_URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # torchvision's
OMNIGLOT_CLASSES = 1623
DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A decoded data set with its name.

    train_x, test_x: (N, C, H, W) uint8, or `DiskImages` that stand for such a tensor; of a user's own arrays
    also vectors (N, D), and standardised float32 instead of uint8. train_y, test_y: (N,)
    int64. classes: a name for each label.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what the user should know of the data
    split_hash: str = ""  # of a split into training and test images that is the user's own

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """The labels (N,) of the training and of the test set."""
        return self.train_y, self.test_y


def digits() -> Source:
    """scikit-learn's 1,797 real 8x8 digits, split 80/20 by class with a fixed seed; no download.

    Cached in the user's folder: importing scikit-learn takes seconds, longer than many a run on these images.
    """
    key = f"scikit-learn {metadata.version('scikit-learn')}"
    cache = images.cache_folder()
    return _source("digits", images.cached(cache and cache / "digits.pt", key, _split_digits))


def _split_digits() -> Decoded:
    from sklearn.datasets import load_digits  # takes seconds, and the result is cached
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=bunch.target, random_state=0)
    return {
        "train_x": pixels[train], "train_y": labels[train], "test_x": pixels[test], "test_y": labels[test],
        "classes": DIGIT_NAMES,
    }  # fmt: skip


def mnist(data_dir: str | Path) -> Source:
    """MNIST, 60,000 + 10,000 images 1x28x28, from `MNIST/raw/` in torchvision's layout."""
    return _idx_source("mnist", "MNIST", DIGIT_NAMES, data_dir)


def fmnist(data_dir: str | Path) -> Source:
    """Fashion-MNIST, 60,000 + 10,000 images 1x28x28, from `FashionMNIST/raw/` in torchvision's layout."""
    return _idx_source("fmnist", "FashionMNIST", FASHION_NAMES, data_dir)


def cifar10(data_dir: str | Path) -> Source:
    """CIFAR-10, 50,000 + 10,000 images 3x32x32, from torchvision's layout or an image folder `cifar10/`."""
    return _cifar("cifar10", 10, "CIFAR10", data_dir)


def cifar100(data_dir: str | Path) -> Source:
    """CIFAR-100, 50,000 + 10,000 images 3x32x32, from torchvision's layout or an image folder `cifar100/`."""
    return _cifar("cifar100", 100, "CIFAR100", data_dir)


def tinyimagenet(data_dir: str | Path, storage: Storage | None = None) -> Source:
    """Tiny-ImageNet, 100,000 + 10,000 images 3x64x64: the labelled validation set is the test set.

    From the official `tiny-imagenet-200/{train,val}`, classes numbered in the order of its `wnids.txt` as
    in mammoth, DER and the memorization paper, or an image folder `tinyimagenet/`, numbered alphabetically.
    """
    root = Path(data_dir).expanduser()
    if not (root / "tiny-imagenet-200").is_dir():
        if (root / "tinyimagenet").is_dir():
            return _known_folder("tinyimagenet", root, 200, 64)
        _download_tiny_imagenet(root)
    folder = root / "tiny-imagenet-200"
    splits = image_files.list_tiny_imagenet(folder)
    storage = storage or Storage(data_dir=data_dir)
    decoded = read_folder(folder, splits, storage, side=64)
    return _known("tinyimagenet", _renumbered(decoded, dict.fromkeys(splits[0].labels)), 200)


def omniglot(data_dir: str | Path) -> Source:
    """Omniglot, 1,623 characters of 50 alphabets, 1x28x28, ink 255 on 0; 15 + 5 drawings of each.

    From torchvision's `omniglot-py/` or an image folder `omniglot/` whose classes are called
    `ALPHABET.CHARACTER`, dark ink on white; the classes of the result are called `ALPHABET/CHARACTER`.
    """
    root = Path(data_dir).expanduser()
    folder, users_folder = root / "omniglot-py", root / "omniglot"
    official = all((folder / background).is_dir() for background in image_files.OMNIGLOT)
    if not official and not users_folder.is_dir():
        with _downloading("omniglot", root, "omniglot-py/ (or its zip files, or an image folder omniglot/)"):
            for background in (True, False):
                _torchvision_reader("Omniglot")(str(root), background, download=True)
        official = True
    folder, list_files = (
        (folder, image_files.list_omniglot) if official else (users_folder, image_files.list_folder)
    )
    decoded = images.read_folder(folder, list_files(folder), images.cache_folder(root), resize=28)
    decoded["train_x"], decoded["test_x"] = (255 - x[:, :1] for x in (decoded["train_x"], decoded["test_x"]))
    if official:
        decoded["classes"] = tuple(name.partition("/")[2] for name in decoded["classes"])
        return _known("omniglot", decoded, OMNIGLOT_CLASSES)
    if wrong := [name for name in decoded["classes"] if "." not in name]:
        raise DataError(f"{users_folder}: class '{wrong[0]}' is not called ALPHABET.CHARACTER; rename it")
    decoded["classes"] = tuple(name.replace(".", "/", 1) for name in decoded["classes"])
    return _source("omniglot", decoded)


def _source(name: str, decoded: Decoded) -> Source:
    return Source(name, **decoded | {"classes": tuple(decoded["classes"])})


def _known(name: str, decoded: Decoded, n_classes: int) -> Source:
    """The source, after a check that no class is missing from its folder."""
    if len(decoded["classes"]) != n_classes:
        raise DataError(
            f"{name}: {n_classes} classes expected, {len(decoded['classes'])} found; the folder is incomplete"
        )
    return _source(name, decoded)


def _renumbered(decoded: Decoded, classes: Iterable[str]) -> Decoded:
    """The data with its classes numbered in this order; the cache numbers them as its own `classes` say."""
    number = {name: i for i, name in enumerate(classes)}
    table = torch.tensor([number[name] for name in decoded["classes"]])
    train_y, test_y = table[decoded["train_y"]], table[decoded["test_y"]]
    return {**decoded, "train_y": train_y, "test_y": test_y, "classes": tuple(number)}


def _known_folder(name: str, root: Path, n_classes: int, side: int) -> Source:
    folder = root / name
    decoded = images.read_folder(
        folder, image_files.list_folder(folder), images.cache_folder(root), side=side
    )
    return _known(name, decoded, n_classes)


@contextmanager
def _downloading(name: str, root: Path, files: str) -> Iterator[None]:
    """Turn every way in which a download can fail into one `DataError`."""
    if root.exists() and not root.is_dir():
        raise DataError(f"--data_dir {root}: is a file, not a folder; give the folder that holds {files}")
    print(f"{name}: not found in {root}, downloading it there", file=sys.stderr)
    damaged = (EOFError, zipfile.BadZipFile, tarfile.TarError)
    failures = (OSError, RuntimeError, http.client.HTTPException, *damaged)
    try:
        yield
    except failures as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name}: the download failed ({reason}); put {files} into {root} by hand, "
            "or give the folder that holds it: --data_dir DIR"
        ) from error


def _download_tiny_imagenet(root: Path) -> None:
    """Unpack into a temporary folder, then move: an interrupted run leaves no incomplete data set."""
    from torchvision.datasets.utils import download_and_extract_archive  # as in `_torchvision_reader`

    with _downloading("tinyimagenet", root, "tiny-imagenet-200/ (or tiny-imagenet-200.zip)"):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="unpacking-") as unpacked:
            download_and_extract_archive(TINY_URL, str(root), unpacked, md5=TINY_MD5, remove_finished=True)
            (Path(unpacked) / "tiny-imagenet-200").rename(root / "tiny-imagenet-200")


def _idx_source(name: str, folder: str, classes: tuple[str, ...], data_dir: str | Path) -> Source:
    root = Path(data_dir).expanduser()
    kinds = {"images": "idx3", "labels": "idx1"}
    files = [
        root / folder / "raw" / f"{split}-{kind}-{number}-ubyte"
        for split in ("train", "t10k")
        for kind, number in kinds.items()
    ]
    if not all(file.is_file() for file in files):
        with _downloading(name, root, f"{folder}/raw/ with {', '.join(file.name for file in files)}"):
            _torchvision_reader(folder)(str(root), download=True)
    splits = []
    for image_file, label_file in (files[:2], files[2:]):
        pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(pixels) != len(labels) or int(labels.max()) >= len(classes):
            raise DataError(
                f"{label_file}: does not fit {image_file.name}; delete both to have them downloaded again"
            )
        splits.append((pixels.unsqueeze(1), labels.long()))
    (train_x, train_y), (test_x, test_y) = splits
    return Source(name, train_x, train_y, test_x, test_y, classes)


def read_idx(file: Path, n_dims: int) -> Tensor:
    """The uint8 tensor in an idx file (MNIST's format); raises `DataError` if the file is damaged.

    Format: bytes 0, 0, 8 (unsigned byte), number of dimensions; each size as 4 bytes, most significant
    first; then the values.
    """
    try:
        content = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{file}: unreadable ({error}); check its permissions") from error
    remedy = f"delete {file} and run again to have it downloaded"
    start = 4 + 4 * n_dims
    if len(content) < start or content[:4].tolist() != [0, 0, 8, n_dims]:
        raise DataError(f"{file}: not an idx file of {n_dims}-dimensional bytes; {remedy}")
    shape = content[4:start].view(">u4").tolist()
    if len(content) - start != prod(shape) or not prod(shape):
        raise DataError(f"{file}: {len(content) - start} bytes of data, {prod(shape)} expected; {remedy}")
    return torch.from_numpy(content[start:]).view(shape)


def _cifar(name: str, n_classes: int, reader_name: str, data_dir: str | Path) -> Source:
    """The original batches where they are, else an image folder of that name, else a download."""
    root = Path(data_dir).expanduser()
    batches = root / CIFAR_FOLDERS[name]
    if not batches.is_dir():
        if (root / name).is_dir():
            return _known_folder(name, root, n_classes, 32)
        with _downloading(name, root, f"{batches.name}/ (or its .tar.gz, or an image folder {name}/)"):
            _torchvision_reader(reader_name)(str(root), download=True)
    files = sorted(file.name for file in batches.iterdir())
    key = image_files.fingerprint(batches, [image_files.Listing(files, [name] * len(files))])
    cache = images.cache_folder(root)
    path = cache and cache / f"{name}-{key[:16]}.pt"
    return _known(
        name,
        images.cached(path, key, lambda: _read_batches(_torchvision_reader(reader_name), root)),
        n_classes,
    )


def _torchvision_reader(name: str) -> Any:
    """The class of that name in torchvision.datasets, which downloads and reads a data set."""
    import torchvision  # takes a second, and is not needed for what is cached

    return getattr(torchvision.datasets, name)


def _read_batches(reader: Any, root: Path) -> Decoded:
    """Read CIFAR's pickles with torchvision, which does so only right after checking their MD5 sums."""
    from torchvision.datasets.utils import check_integrity  # as in `_torchvision_reader`

    folder, meta = root / reader.base_folder, (reader.meta["filename"], reader.meta["md5"])
    for file, md5 in (*reader.train_list, *reader.test_list, meta):
        if not check_integrity(str(folder / file), md5):
            raise DataError(
                f"{folder / file}: missing or damaged (MD5); delete {folder} to have it downloaded again"
            )
    train, test = (reader(str(root), train=is_train) for is_train in (True, False))
    train_x, test_x = (torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous() for s in (train, test))
    train_y, test_y = torch.tensor(train.targets), torch.tensor(test.targets)
    return Decoded(
        train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y, classes=tuple(test.classes)
    )
