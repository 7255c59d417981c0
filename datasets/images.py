"""Images: folders of JPEG and PNG files → uint8 tensors, decoded once and cached."""

import csv
import hashlib
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from engram.utils.errors import UserError

FORMAT = 1  # of the cache: a new number makes every old file unread
FIELDS = ("train_x", "train_y", "test_x", "test_y")
SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "expected {0}/<class>/*.jpg|png, or {0}.csv with columns path,label"
OMNIGLOT = ("images_background", "images_evaluation")
USER_CACHE = "~/.cache/engram"
CHUNK = 64
# What Pillow raises for a file that is cut short, damaged, or no image at all.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class DataError(UserError):
    """A data set is missing, incomplete or damaged; the message names the file and what to do."""


class Listing(NamedTuple):
    """Image files of one split, in order: paths relative to the folder, and the name of each one's class."""

    paths: list[str]
    labels: list[str]


def read_folder(
    root: Path, splits: tuple[Listing, Listing], cache: Path | None, resize: int | None = None,
    side: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The decoded training and test images of a folder: `FIELDS` and `classes`.

    resize: shorter side scaled to this, then the centre cropped (None: images must agree in size).
    side: the size that every image must have (None: any). Raises `DataError`.
    """
    classes = class_names(root, *splits)
    number = {name: i for i, name in enumerate(classes)}
    key = fingerprint(root, splits, resize)

    def decode_all() -> dict[str, Any]:
        n = sum(len(split.paths) for split in splits)
        print(f"decoding {n:,} images of {root}, once", file=sys.stderr)
        train_x, test_x = _decode_splits(root, splits, resize, side)
        train_y, test_y = (torch.tensor([number[name] for name in split.labels]) for split in splits)
        return {
            "train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y, "classes": classes
        }  # fmt: skip

    return cached(cache and cache / f"{root.name}-{key[:16]}.pt", key, decode_all)


def list_folder(root: Path) -> tuple[Listing, Listing]:
    """Training and test files of a folder: as `train.csv`, `test.csv` say, else all of `train/<class>/` etc.

    Class folders and the files in them are taken in alphabetical order.
    """
    splits = []
    for split in ("train", "test"):
        table = root / f"{split}.csv"
        splits.append(_list_table(table) if table.is_file() else _list_classes(root, split))
    return splits[0], splits[1]


def list_tiny_imagenet(root: Path) -> tuple[Listing, Listing]:
    """Files of the official `tiny-imagenet-200`; its validation set is the test set."""
    train = Listing([], [])
    for name in _lines(root / "wnids.txt"):
        paths = _images_in(root, f"train/{name}/images")
        train.paths.extend(paths)
        train.labels.extend([name] * len(paths))
    rows = [line.split("\t")[:2] for line in _lines(root / "val/val_annotations.txt")]
    if any(len(row) != 2 for row in rows):
        raise DataError(f"{root}/val/val_annotations.txt: damaged; expected file and class on each line")
    return train, Listing([f"val/images/{file}" for file, _ in rows], [name for _, name in rows])


def list_omniglot(root: Path) -> tuple[Listing, Listing]:
    """Files of torchvision's `omniglot-py`: drawings 1 to 15 of a character train, 16 to 20 test.

    Classes are called PART/ALPHABET/CHARACTER, so that the background set sorts before the evaluation set.
    """
    train, test = Listing([], []), Listing([], [])
    folders = [folder for part in OMNIGLOT for folder in root.glob(f"{part}/*/*/")]
    for folder in sorted(f.relative_to(root).as_posix() for f in folders):
        paths = _images_in(root, folder)
        if len(paths) != 20:
            raise DataError(f"{root / folder}: {len(paths)} drawings, 20 expected; delete {root}")
        for split, part in ((train, paths[:15]), (test, paths[15:])):
            split.paths.extend(part)
            split.labels.extend([folder] * len(part))
    return train, test


def class_names(root: Path, train: Listing, test: Listing) -> tuple[str, ...]:
    """The classes of the training set, sorted (as numbers where all are); the test set must have the same."""
    names, tested = set(train.labels), set(test.labels)
    if extra := sorted(tested - names):
        raise DataError(f"{root}: test class '{extra[0]}' has no training images; add some or remove it")
    if untested := sorted(names - tested):
        raise DataError(
            f"{root}: class '{untested[0]}' has no test images; add some or remove it from training"
        )
    return tuple(sorted(names, key=int if all(n.isdecimal() for n in names) else None))


def _list_classes(root: Path, split: str) -> Listing:
    if not (root / split).is_dir():
        raise DataError(f"{root / split}: no such folder; " + LAYOUT.format(split))
    listing = Listing([], [])
    for name in sorted(f.name for f in os.scandir(root / split) if f.is_dir() and f.name[0] != "."):
        paths = _images_in(root, f"{split}/{name}")
        listing.paths.extend(paths)
        listing.labels.extend([name] * len(paths))
    if not listing.paths:
        raise DataError(f"{root / split}: empty; " + LAYOUT.format(split))
    return listing


def _images_in(root: Path, folder: str) -> list[str]:
    if not (root / folder).is_dir():
        raise DataError(f"{root / folder}: no such folder; the data set is incomplete, unpack it again")
    found = sorted(f.name for f in os.scandir(root / folder) if f.name.lower().endswith(SUFFIXES))
    if not found:
        raise DataError(f"{root / folder}: no .jpg or .png file; add images or remove the folder")
    return [f"{folder}/{name}" for name in found]


def _list_table(table: Path) -> Listing:
    listing = Listing([], [])
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if missing := {"path", "label"} - set(rows.fieldnames or ()):
                raise DataError(f"{table}: column '{min(missing)}' is missing; expected a header path,label")
            for row in rows:
                path, label = row["path"], row["label"]
                if not path or not label:
                    raise DataError(f"{table}, line {rows.line_num}: path or label is empty; fill it in")
                if path[0] == "/" or ".." in path.split("/"):
                    where = f"{table}, line {rows.line_num}: '{path}'"
                    raise DataError(
                        f"{where} lies outside {table.parent}; paths are relative to it, without .."
                    )
                listing.paths.append(path)
                listing.labels.append(label)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: unreadable ({error}); save it as CSV in UTF-8") from error
    if not listing.paths:
        raise DataError(f"{table}: empty; one line for each image is needed")
    return listing


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: unreadable ({error}); the data set is incomplete, unpack it again"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def fingerprint(root: Path, splits: Iterable[Listing], *settings: Any) -> str:
    """Hash of path, label, size and time of change of every file, and of the settings."""
    text = [repr((FORMAT, *settings))]
    for split in splits:
        for path, label in zip(*split, strict=True):
            try:
                stat = os.stat(os.path.join(root, path))
            except OSError:
                where = f"{os.path.join(root, path)}: no such file, though the listing names it"
                raise DataError(f"{where}; put it there or take it out of the listing") from None
            text.append(f"{path}\t{label}\t{stat.st_size}\t{stat.st_mtime_ns}")
        text.append("")
    return hashlib.blake2b("\n".join(text).encode(), digest_size=32).hexdigest()


def _decode_splits(
    root: Path, splits: Iterable[Listing], resize: int | None, side: int | None
) -> list[Tensor]:
    """(N, 3, H, W) uint8 for each split, all of one size."""
    shape, decoded = (side, side, 3) if side else None, []
    for split in splits:
        files = [root / path for path in split.paths]
        shape = shape or read_image(files[0], resize).shape
        decoded.append(decode(files, shape, resize, fixed=side is not None))
    return decoded


def decode(files: list[Path], shape: tuple[int, int, int], resize: int | None, fixed: bool = False) -> Tensor:
    """(N, 3, H, W) uint8 images of the files; `shape` is the (H, W, 3) that each must have."""
    images = torch.empty(len(files), 3, *shape[:2], dtype=torch.uint8)
    rows = images.numpy()

    def put(start: int, chunk: np.ndarray) -> None:
        rows[start : start + len(chunk)] = chunk

    decode_into(put, files, shape, resize, fixed)
    return images


def decode_into(
    put: Callable[[int, np.ndarray], None], files: list[Path], shape: tuple[int, int, int],
    resize: int | None, fixed: bool = False,
) -> None:  # fmt: skip
    """`decode`, a chunk at a time: `put(start, images)` is called from several threads, in any order."""

    def fill(start: int) -> int:
        chunk = files[start : start + CHUNK]
        rows = np.empty((len(chunk), 3, *shape[:2]), dtype=np.uint8)
        for i, file in enumerate(chunk):
            image = read_image(file, resize)
            if image.shape != shape:
                todo = "replace it" if fixed else "give --img_size to bring all images to one size"
                (height, width), (high, wide) = image.shape[:2], shape[:2]
                raise DataError(f"{file}: {width}x{height} pixels where {wide}x{high} is expected; {todo}")
            rows[i] = image.transpose(2, 0, 1)
        put(start, rows)
        return len(chunk)

    bar = tqdm(total=len(files), unit="image", desc="decoding", disable=not sys.stderr.isatty())
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for n in pool.map(fill, range(0, len(files), CHUNK)):
            bar.update(n)


def read_image(file: Path, resize: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8; grey images become RGB; `resize` gives a centre square of that side."""
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable image ({error}); replace or remove it") from error
    if resize:
        rgb = ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def cache_folder(data_dir: Path) -> Path | None:
    """`decoded/` in the data folder if that can be written, else in the user's cache, else None."""
    for base in (data_dir, Path(USER_CACHE).expanduser()):
        folder = base / "decoded"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


def cached(path: Path | None, key: str, decode_all: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `decode_all` returns, from `path` if it was kept there under this key (memory-mapped)."""
    if path and (saved := _load(path, key)):
        return saved
    decoded = decode_all()
    if path:
        _save(decoded | {"key": key}, path)
    return decoded


def _load(path: Path, key: str) -> dict[str, Any] | None:
    """None when there is no file, or one that is damaged or of other images: it is then made anew."""
    try:
        saved = torch.load(path, weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return None
    if not isinstance(saved, dict) or saved.pop("key", None) != key:
        return None
    return saved if set(saved) == {*FIELDS, "classes"} else None


def _save(decoded: dict[str, Any], path: Path) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(decoded, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # a full disk costs the cache, not the run
        print(f"{path}: decoded images not kept: {error}", file=sys.stderr)
    finally:
        partial.unlink(missing_ok=True)
