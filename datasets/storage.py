"""Storage: decides whether a data set's decoded images are held in memory or stay on disk (--images).

In memory they are tensors, cached by `images.py`; on disk they are `DiskImages` over files of `shards.py`.
"""

import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from engram.datasets import image_files, images, shards
from engram.datasets.image_files import Listing
from engram.datasets.images import Decoded, Put
from engram.utils.config.config import Config
from engram.utils.errors import DataError

# Of what is free; the rest is for a copy of the task's own images, the network and its activations.
SHARE = 0.5
# What a container or batch system grants, cgroups v2 and v1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Storage:
    """What the decision depends on: --images, the device whose memory is wanted, and --data_dir."""

    images: str = "memory"
    device: torch.device | str = "cpu"
    data_dir: str | Path = ""

    @classmethod
    def configured(cls, config: Config, device: torch.device | str) -> "Storage":
        """The storage that a run's configuration asks for."""
        return cls(config.run.images, device, config.run.data_dir)

    def reason_for_disk(self, n_bytes: int) -> str | None:
        """Why so many bytes of images stay on disk; None where they are held in memory."""
        if self.images != "auto":
            return "--images disk" if self.images == "disk" else None
        free = free_bytes(self.device)
        if n_bytes <= SHARE * free:
            return None
        return f"more than half of the {format_bytes(free)} that are free on {self.device}"

    def folder(self, name: str, key: str) -> Path:
        """The folder of shards for a data set of that name and key; raises `DataError` without a cache."""
        cache = images.cache_folder(Path(self.data_dir).expanduser())
        if cache is None:
            raise DataError(
                f"images must stay on disk, but {self.data_dir} cannot be written; give another --data_dir"
            )
        return cache / f"{name}-{key[:16]}.shards"


def free_bytes(device: torch.device | str) -> int:
    """Memory that images could take on the device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [int(text) for path in LIMITS if (text := _text(path).strip()).isdecimal()]
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(1024 * int(line.split()[1]))
    return min(limits, default=sys.maxsize)  # a system that tells nothing: images go into memory


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def format_bytes(n_bytes: float) -> str:
    """A number of bytes as a user reads it: 1.5 GB, 20 MB."""
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"


def read_folder(
    root: Path,
    splits: tuple[Listing, Listing],
    storage: Storage,
    resize: int | None = None,
    side: int | None = None,
) -> Decoded:
    """The images of a folder as by `images.read_folder`; they stay on disk where `storage` says so."""
    cache = images.cache_folder(Path(storage.data_dir).expanduser())
    if storage.images == "memory":
        return images.read_folder(root, splits, cache, resize, side)
    classes = image_files.class_names(root, *splits)
    first = root / splits[0].paths[0]
    shape = (side, side, 3) if side else images.read_image(first, resize).shape
    n = sum(len(split.paths) for split in splits)
    reason = storage.reason_for_disk(n * prod(shape))
    if not reason:
        return images.read_folder(root, splits, cache, resize, side)
    number = {name: i for i, name in enumerate(classes)}
    listings = dict(zip(("train", "test"), splits, strict=True))
    labels = {split: torch.tensor([number[c] for c in listing.labels]) for split, listing in listings.items()}

    def fill(split: str, put: Put) -> None:
        print(f"decoding {len(labels[split]):,} {split} images of {root} to disk, once", file=sys.stderr)
        files = [root / path for path in listings[split].paths]
        images.decode_into(put, files, shape, resize, fixed=side is not None)

    key = images.decoding_key(root, splits, resize)
    return on_disk(storage.folder(root.name, key), key, (3, *shape[:2]), classes, labels, fill, reason)


def on_disk(
    folder: Path,
    key: str,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    labels: dict[str, Tensor],
    fill: shards.Fill,
    reason: str,
) -> Decoded:
    """The data set in a folder of shards, which is written first if it is missing or damaged.

    reason: why the images are on disk, for the line that the run shows.
    """
    n_bytes = prod(shape) * sum(len(y) for y in labels.values())
    note = f"on disk, {format_bytes(n_bytes)} in {folder} ({reason})"
    try:
        return shards.read(folder, key, note)
    except DataError as error:
        if folder.is_dir():
            print(f"made anew now: {error}", file=sys.stderr)
    shards.write(folder, key, shape, classes, labels, fill)
    return shards.read(folder, key, note)
