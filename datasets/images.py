"""Images: decodes the image files of a data set to uint8 tensors and caches the result.

The cache is one file for each data set and setting, loaded into memory whole; images that are too many for
that go to `shards.py` instead, as `storage.py` decides.
"""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from engram.datasets.image_decoding import DECODER, read_rgb
from engram.datasets.image_files import Listing, class_names, fingerprint
from engram.utils.checkpoint import DamagedFileError, load_verified
from engram.utils.errors import DataError
from engram.utils.files import replacing

FIELDS = ("train_x", "train_y", "test_x", "test_y")
USER_CACHE = "~/.cache/engram"
CHUNK = 64


class Decoded(TypedDict):
    """A decoded data set: images (N, C, H, W) uint8 and labels (N,) of both splits, a name for each label."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]


# put(start, images): stores images (n, C, H, W) of one split, its rows `start` to `start + n`
Put = Callable[[int, NDArray[np.uint8]], None]


def read_folder(
    root: Path, splits: tuple[Listing, Listing], cache: Path | None, resize: int | None = None,
    side: int | None = None,
) -> Decoded:  # fmt: skip
    """The decoded training and test images of a folder.

    resize: shorter side scaled to this, then the centre cropped (None: images must agree in size).
    side: the size that every image must have (None: any). Raises `DataError`.
    """
    classes = class_names(root, *splits)
    number = {name: i for i, name in enumerate(classes)}
    key = decoding_key(root, splits, resize)

    def decode_all() -> Decoded:
        n = sum(len(split.paths) for split in splits)
        print(f"decoding {n:,} images of {root}, once", file=sys.stderr)
        train_x, test_x = _decode_splits(root, splits, resize, side)
        train_y, test_y = (torch.tensor([number[name] for name in split.labels]) for split in splits)
        return {
            "train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y, "classes": classes
        }  # fmt: skip

    return cached(cache and cache / f"{root.name}-{key[:16]}.pt", key, decode_all)


def decoding_key(root: Path, splits: Iterable[Listing], resize: int | None) -> str:
    """Identifies what is decoded from these files: it changes with them, the size and the decoder's rules."""
    return fingerprint(root, splits, resize, DECODER)


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
    try:
        images = torch.empty(len(files), 3, *shape[:2], dtype=torch.uint8)
    except RuntimeError:
        raise DataError(
            f"{len(files):,} images of {shape[1]}x{shape[0]} pixels do not fit into memory; give --images "
            "disk or a smaller --img_size"
        ) from None
    rows = images.numpy()

    def put(start: int, chunk: NDArray[np.uint8]) -> None:
        rows[start : start + len(chunk)] = chunk

    decode_into(put, files, shape, resize, fixed)
    return images


def decode_into(
    put: Put, files: list[Path], shape: tuple[int, int, int],
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


def read_image(file: Path, resize: int | None = None) -> NDArray[np.uint8]:
    """The image of a file, (H, W, 3) uint8, see `read_rgb`; `resize` cuts a centre square of that side."""
    rgb = read_rgb(file)
    if resize:
        rgb = ImageOps.fit(rgb, (resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def user_cache() -> list[Path]:
    """The user's cache folder; none for a user without home, as a container may have."""
    try:
        return [Path(USER_CACHE).expanduser()]
    except RuntimeError:
        return []


def cache_folder(data_dir: Path | None = None, name: str = "decoded") -> Path | None:
    """`decoded/` in the data folder if that can be written, else in the user's cache, else None."""
    for base in ([data_dir] if data_dir else []) + user_cache():
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


def cached(path: Path | None, key: str, decode_all: Callable[[], Decoded]) -> Decoded:
    """What `decode_all` returns, read from `path` (memory-mapped) if it was cached there under this key."""
    if path and (saved := _load(path, key)):
        return saved
    decoded = decode_all()
    if path:
        _save(decoded, key, path)
    return decoded


def _load(path: Path, key: str) -> Decoded | None:
    """None when there is no file, or one that is damaged or of other images: it is then made anew."""
    try:
        saved = load_verified(path, mmap=True)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        print(f"{path}: damaged ({error}); it is made anew", file=sys.stderr)
        return None
    if not isinstance(saved, dict) or saved.pop("key", None) != key:
        return None
    return cast(Decoded, saved) if set(saved) == {*FIELDS, "classes"} else None


def _save(decoded: Decoded, key: str, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            torch.save({**decoded, "key": key}, temporary)
    except (OSError, RuntimeError) as error:  # a full disk costs the cache, not the run
        print(f"{path}: decoded images not cached: {error}", file=sys.stderr)
