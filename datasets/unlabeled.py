"""Unlabeled images: reads any folder of JPEG and PNG files as uint8 tensors of a benchmark's shape.

For methods that learn from other images besides the stream; nothing is cached.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from engram.datasets.image_files import SUFFIXES
from engram.datasets.images import UNREADABLE
from engram.utils.errors import DataError


def files(folder: str | Path) -> list[Path]:
    """All image files below a folder, in alphabetical order of their paths."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder; give one that holds .jpg or .png files")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no .jpg or .png file in it or below it; put the images there")
    return paths


def read(paths: list[Path], shape: tuple[int, int, int]) -> Tensor:
    """(N, C, H, W) uint8: grey for one channel, else RGB, scaled to cover H × W and cropped at the centre."""
    channels, height, width = shape

    def decode(path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                converted = image.convert("L" if channels == 1 else "RGB")
        except UNREADABLE as error:
            raise DataError(f"{path}: not a readable image ({error}); replace or remove it") from error
        pixels = np.asarray(ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR))
        return pixels.reshape(height, width, -1).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        return torch.from_numpy(np.stack(list(pool.map(decode, paths))))
