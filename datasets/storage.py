"""Storage: whether decoded images are held in memory or stay on disk (--images)."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engram.datasets import images, shards
from engram.datasets.images import DataError, Listing
from engram.datasets.lazy_images import LazyImages

# Of what is free; the rest is for a copy of the task's own images, the network and its activations.
SHARE = 0.5
CHUNK_BYTES = 64 << 20
# What a container or batch system grants, cgroups v2 and v1.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Storage:
    """What decides: --images, the device that memory is wanted on, and --data_dir."""

    images: str = "memory"
    device: torch.device | str = "cpu"
    data_dir: str = ""

    @classmethod
    def asked(cls, config, device: torch.device | str) -> "Storage":
        """As a run's configuration says."""
        return cls(config.run.images, device, config.run.data_dir)

    def reason(self, n_bytes: int) -> str | None:
        """Why so many bytes of images stay on disk; None where they are held in memory."""
        if self.images != "auto":
            return "--images disk" if self.images == "disk" else None
        free = free_bytes(self.device)
        if n_bytes <= SHARE * free:
            return None
        return f"more than half of the {amount(free)} that are free on {self.device}"

    def folder(self, name: str, key: str) -> Path:
        """Where images of that name and key are kept."""
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
    found = [int(text) for path in LIMITS if (text := _text(path).strip()).isdecimal()]
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    return min(found, default=sys.maxsize)  # where nothing is known, memory it is


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def amount(n_bytes: float) -> str:
    """For people."""
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"


def read_folder(
    root: Path,
    splits: tuple[Listing, Listing],
    storage: Storage,
    resize: int | None = None,
    side: int | None = None,
) -> dict[str, Any]:
    """What `images.read_folder` gives, with images that stay on disk where `storage` says so."""
    cache = images.cache_folder(Path(storage.data_dir).expanduser())
    if storage.images == "memory":
        return images.read_folder(root, splits, cache, resize, side)
    classes = images.class_names(root, *splits)
    first = root / splits[0].paths[0]
    shape = (side, side, 3) if side else images.read_image(first, resize).shape
    n = sum(len(split.paths) for split in splits)
    reason = storage.reason(n * prod(shape))
    if not reason:
        return images.read_folder(root, splits, cache, resize, side)
    number = {name: i for i, name in enumerate(classes)}
    parts = dict(zip(("train", "test"), splits, strict=True))
    labels = {name: torch.tensor([number[c] for c in part.labels]) for name, part in parts.items()}

    def fill(split: str, put: shards.Put) -> None:
        print(f"decoding {len(labels[split]):,} {split} images of {root} to disk, once", file=sys.stderr)
        files = [root / path for path in parts[split].paths]
        images.decode_into(put, files, shape, resize, fixed=side is not None)

    key = images.fingerprint(root, splits, resize)
    return kept(storage.folder(root.name, key), key, (3, *shape[:2]), classes, labels, fill, reason)


def placed(source: Any, config, device: torch.device | str) -> Any:
    """The source (`sources.Source`), its images moved to disk where the run's configuration says so.

    Under --validation the test set is left alone: not even its size is looked at.
    """
    if isinstance(source.train_x, LazyImages):
        return source
    storage, splits = (
        Storage.asked(config, device),
        ("train",) if config.stream.validation else ("train", "test"),
    )
    tensors, labels = ({s: getattr(source, f"{s}_{field}") for s in splits} for field in "xy")
    reason = storage.reason(sum(x.numel() for x in tensors.values()))
    if not reason:
        return source
    shape = tuple(source.train_x.shape[1:])
    size = max(1, CHUNK_BYTES // prod(shape))
    digest = hashlib.blake2b(repr((shape, source.classes)).encode(), digest_size=32)
    for tensor in (*tensors.values(), *labels.values()):
        for chunk in tensor.split(size):
            digest.update(chunk.contiguous().numpy().data)

    def fill(split: str, put: shards.Put) -> None:
        for i, chunk in enumerate(tensors[split].split(size)):
            put(i * size, chunk.numpy())

    key = digest.hexdigest()
    data = kept(storage.folder(source.name, key), key, shape, source.classes, labels, fill, reason)
    return replace(source, **{f"{split}_x": data[f"{split}_x"] for split in splits})


def kept(
    folder: Path,
    key: str,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    labels: dict[str, Tensor],
    fill: Callable[[str, shards.Put], None],
    reason: str,
) -> dict[str, Any]:
    """The data set in a folder of shards, which is made if it is not there."""
    if not folder.is_dir():
        shards.write(folder, key, shape, classes, labels, fill)
    n_bytes = prod(shape) * sum(len(y) for y in labels.values())
    return shards.read(folder, key, f"on disk, {amount(n_bytes)} in {folder} ({reason})")
