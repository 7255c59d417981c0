"""Shards: the files of a decoded data set that stays on disk: written once, checked, mapped into memory.

    NAME-KEY.shards/
        header.json      version, key, shape of an image, classes; size and hash of each file; its own CRC
        train-0000.u8    SHARD_BYTES of images at most, (n, C, H, W) uint8; train-0001.u8, test-0000.u8, ...
        train_y.npy      labels (N,); test_y.npy
        train_crc.npy    CRC32 of every image, (N,) uint32; test_crc.npy

The folder is renamed to its final name when all files are complete on the disk: an interrupted write is never
mistaken for a data set. When it is opened, labels and CRCs are hashed whole and of the images samples, which
detects a file that was zeroed or exchanged, at once and whatever its size. An image is compared with its CRC
whenever it is read, so that a single byte that changed is noticed too, at about 0.3 s per GB read.
"""

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.datasets.images import Decoded, Put
from engram.datasets.lazy_images import DiskImages
from engram.utils.errors import DataError

VERSION = 2
SHARD_BYTES = 1 << 30
CHECKED = 16, 4096  # pieces of a file, evenly spread, and their bytes

# fill(split, put): calls `put` with all images of the split, in any order and from any thread
Fill = Callable[[str, Put], None]


def write(
    folder: Path,
    key: str,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    labels: dict[str, Tensor],
    fill: Fill,
) -> None:
    """Write the folder, unless it exists; a second process that needs it waits for the first.

    shape: of an image, (C, H, W). labels: split → (N,). Raises `DataError` when the disk is full.
    """
    partial = folder.with_name(folder.name + ".partial")
    with _locked(folder):
        if _usable(folder, key):  # another process has written it meanwhile
            return
        for leftover in (folder, partial):  # damaged, or left by a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        n_bytes = sum(len(y) for y in labels.values()) * prod(shape)
        try:
            if n_bytes > (free := shutil.disk_usage(folder.parent).free):
                raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free on that disk")
            partial.mkdir()
            files: dict[str, dict[str, Any]] = {}
            for split, y in labels.items():
                np.save(partial / f"{split}_y.npy", y.numpy())
                np.save(partial / f"{split}_crc.npy", _write_images(partial, split, shape, len(y), fill))
            for path in sorted(partial.iterdir()):
                files[path.name] = {"bytes": path.stat().st_size, "check": check(path)}
            header = {"version": VERSION, "key": key, "shape": shape, "classes": classes, "files": files}
            header["crc"] = _header_crc(header)
            (partial / "header.json").write_text(json.dumps(header), encoding="utf-8")
            for path in partial.iterdir():
                _sync(path)
            partial.rename(folder)
        except OSError as error:
            raise DataError(
                f"{folder}: not written ({error}); it takes {n_bytes / 1e9:.1f} GB: free them, or give a "
                "--data_dir on another disk"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _header_crc(header: dict[str, Any]) -> int:
    """CRC32 of everything in the header but this number itself."""
    return zlib.crc32(json.dumps({**header, "crc": None}, sort_keys=True).encode())


def _usable(folder: Path, key: str) -> bool:
    try:
        read(folder, key)
    except DataError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder; the system releases it when the process ends, however it ends."""
    with open(folder.with_name(folder.name + ".lock"), "a") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_images(
    folder: Path, split: str, shape: tuple[int, int, int], n: int, fill: Fill
) -> NDArray[np.uint32]:
    """Write the files of a split; returns the CRC32 of each image, (n,)."""
    checksums = np.zeros(n, dtype=np.uint32)
    per_file = max(1, SHARD_BYTES // prod(shape))
    paths = [folder / f"{split}-{i:04d}.u8" for i in range(-(-n // per_file))]
    for path in paths:
        path.touch()

    def put(start: int, images: NDArray[np.uint8]) -> None:
        checksums[start : start + len(images)] = crc_of_each(images)
        while len(images):
            file, row = divmod(start, per_file)
            in_file = np.ascontiguousarray(images[: per_file - row])
            with open(paths[file], "r+b") as out:
                out.seek(row * prod(shape))
                out.write(in_file.data)
            start, images = start + len(in_file), images[len(in_file) :]

    fill(split, put)
    return checksums


def crc_of_each(images: NDArray[np.uint8]) -> list[int]:
    """The CRC32 of each of n images (n, C, H, W)."""
    return [zlib.crc32(image) for image in np.ascontiguousarray(images)]


def _sync(path: Path) -> None:
    """Wait until the file's bytes are on the disk and not only in the system's cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def check(path: Path) -> str:
    """Hash of a file; of images only that of evenly spread pieces, first and last bytes among them."""
    n_pieces, length = CHECKED
    digest = hashlib.blake2b(digest_size=16)
    if path.suffix != ".u8":
        digest.update(path.read_bytes())
        return digest.hexdigest()
    last = max(0, path.stat().st_size - length)
    with open(path, "rb") as file:
        for start in np.linspace(0, last, n_pieces).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def read(folder: Path, key: str, note: str = "") -> Decoded:
    """The data set that `write` wrote: of each split `SPLIT_x` (`DiskImages`) and `SPLIT_y`, and `classes`.

    note: for the user, see `DiskImages`. Raises `DataError` for files that are damaged or of other images.
    """
    remedy = f"delete {folder} and run again to have it made anew"
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
        files, shape, stored = header["files"], tuple(header["shape"]), (header["version"], header["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'header.json'}: missing or damaged ({error}); {remedy}") from error
    if stored != (VERSION, key):
        raise DataError(f"{folder}: of version {stored[0]} and other images; {remedy}")
    if header.get("crc") != _header_crc(header):
        raise DataError(f"{folder / 'header.json'}: damaged, its CRC is another; {remedy}")
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != expected["bytes"]:
            raise DataError(f"{path}: {size:,} bytes where {expected['bytes']:,} are expected; {remedy}")
        if check(path) != expected["check"]:
            raise DataError(f"{path}: damaged, its bytes are not those that were written; {remedy}")
    data: dict[str, Any] = {"classes": tuple(header["classes"])}
    for split in (name.removesuffix("_y.npy") for name in files if name.endswith("_y.npy")):
        paths = [folder / name for name in sorted(files) if name.startswith(f"{split}-")]
        checksums = np.load(folder / f"{split}_crc.npy", allow_pickle=False)
        verify = partial(_verify, folder, checksums)
        data[f"{split}_x"] = DiskImages([_mapped(path, shape) for path in paths], note=note, verify=verify)
        data[f"{split}_y"] = torch.from_numpy(np.load(folder / f"{split}_y.npy", allow_pickle=False))
    return cast(Decoded, data)


def _verify(
    folder: Path, checksums: NDArray[np.uint32], images: NDArray[np.uint8], rows: NDArray[np.integer]
) -> None:
    """Compare images that were read with their CRCs; the next start makes a damaged folder anew."""
    if np.array_equal(checksums[rows], crc_of_each(images)):
        return
    with suppress(OSError):  # a disk that cannot be written: the error says what to do
        (folder / "header.json").unlink(missing_ok=True)
    raise DataError(
        f"{folder}: damaged, an image's bytes are not those that were written; run again to have it made "
        f"anew (if that does not help, delete the folder)"
    )


def _mapped(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The images of a file, (n, C, H, W), read from the disk only where they are indexed."""
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray((len(pages) // prod(shape), *shape), np.uint8, buffer=pages)
