"""Unlabeled images: reads any folder of image files as uint8 tensors of a benchmark's shape.

For methods that learn from other images besides the stream; nothing is cached.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from engram.datasets.folder_scan import SUFFIXES, images_below, say_skipped
from engram.datasets.image_decoding import read_rgb
from engram.utils.errors import DataError


def files(folder: str | Path) -> list[Path]:
    """All image files below a folder, in alphabetical order of their paths."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder; give one that holds images")
    skipped = Counter[str]()
    paths = sorted(images_below(root, skipped))
    if not paths:
        raise DataError(f"{folder}: no image in it or below it ({' '.join(SUFFIXES)}); put them there")
    say_skipped(root, skipped)
    return paths


def read(paths: list[Path], shape: tuple[int, int, int]) -> Tensor:
    """(N, C, H, W) uint8: grey for one channel, else RGB, scaled to cover H × W and cropped at the centre."""
    channels, height, width = shape

    def decode(path: Path) -> NDArray[np.uint8]:
        rgb = read_rgb(path)
        converted = rgb.convert("L") if channels == 1 else rgb
        pixels = np.asarray(ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR))
        return pixels.reshape(height, width, -1).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        return torch.from_numpy(np.stack(list(pool.map(decode, paths))))
