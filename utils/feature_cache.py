"""Features of a frozen encoder on disk: each image is encoded once ever, shared by runs, seeds and methods.

    FOLDER/                 named after a hash of all that features depend on (weights, images, precision)
        block-00000.f32     BLOCK images' features, (n, D) float32, and behind them their CRC-32
        block-00001.f32     ...

A block is written whole or not at all. So a program that is killed loses one block at most, and the next one
goes on behind the last; programs that run at the same time write the same bytes. A block whose CRC is another
is encoded again.
"""

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from engram.utils import files

BLOCK = 200
CRC_BYTES = 4

# encode(rows): (n, D) float32 features of the images at these positions, on any device
Encode = Callable[[slice], Tensor]


def key_of(description: str, tensors: Iterable[Tensor]) -> str:
    """32 hexadecimal digits that change with the description, or with a shape, type or byte of a tensor."""
    digest = hashlib.blake2b(description.encode(), digest_size=16)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_or_encode(folder: Path | None, n: int, dim: int, encode: Encode, label: str) -> Tensor:
    """(n, dim) float32 on the CPU: what `folder` holds; blocks that are missing or damaged are encoded.

    folder: None keeps nothing. label: of the bar on a terminal, of a line elsewhere. Raises `DiskError`
    where a block cannot be written.
    """
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    features = torch.empty(n, dim)
    missing = []
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        block = read_block(path_of(folder, start), rows.stop - rows.start, dim) if folder else None
        if block is None:
            missing.append(rows)
        else:
            features[rows].numpy()[:] = block
    damaged = [rows for rows in missing if folder and path_of(folder, rows.start).exists()]
    if damaged:
        print(f"{folder}: {len(damaged)} damaged blocks are encoded again", file=sys.stderr)
    n_missing, on_terminal = sum(rows.stop - rows.start for rows in missing), sys.stderr.isatty()
    if missing and not on_terminal:
        print(f"{label}: {n_missing:,} of {n:,}, once", file=sys.stderr)
    hidden = not (missing and on_terminal)
    with tqdm(total=n, initial=n - n_missing, desc=label, unit="image", disable=hidden) as bar:
        for rows in missing:
            features[rows] = encode(rows).float().cpu()
            if folder:
                write_block(path_of(folder, rows.start), features[rows].numpy())
            bar.update(rows.stop - rows.start)
    return features


def path_of(folder: Path, start: int) -> Path:
    """The file of the block whose first image is at position `start`."""
    return folder / f"block-{start // BLOCK:05d}.f32"


def write_block(path: Path, features: NDArray[np.float32]) -> None:
    """Write the features (n, D) and their checksum, so that a crash leaves all of them or none."""
    content = np.ascontiguousarray(features, dtype="<f4").tobytes()
    with files.replacing(path) as temporary:
        temporary.write_bytes(content + zlib.crc32(content).to_bytes(CRC_BYTES, "little"))


def read_block(path: Path, n: int, dim: int) -> NDArray[np.float32] | None:
    """(n, dim) features of a block; None where it is missing, of another size, or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    values, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if len(values) != 4 * n * dim or zlib.crc32(values).to_bytes(CRC_BYTES, "little") != crc:
        return None
    return np.frombuffer(values, dtype="<f4").reshape(n, dim)
