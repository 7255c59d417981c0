"""Rotation: turns images about their centre, each by its own angle, pixel for pixel as Pillow does."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 2048  # images turned at a time


def origins(shape: torch.Size, degrees: Tensor) -> Tensor:
    """The pixel from which each pixel of (N, C, H, W) images turned by `degrees` (N,) comes: (N, H·W).

    Pixels count from 1; 0 is outside the image. Counter-clockwise, nearest neighbour, in the 16.16 fixed
    point numbers of `PIL.Image.rotate` (Pillow's Image.py and Geometry.c), of which this is the batched form.
    """
    tall, wide = shape[2:]
    angle = -np.radians(degrees.double().numpy() % 360)[:, None, None]
    cos, sin = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    row, column = np.arange(tall)[:, None], np.arange(wide)
    across, down = (wide - 1) / 2, (tall - 1) / 2  # of the first pixel's centre from the image's
    x = _fixed(wide / 2 - cos * across - sin * down) + _fixed(cos) * column + _fixed(sin) * row
    y = _fixed(tall / 2 + sin * across - cos * down) + _fixed(-sin) * column + _fixed(cos) * row
    x, y = x >> 16, y >> 16
    inside = (x >= 0) & (x < wide) & (y >= 0) & (y < tall)
    return torch.from_numpy(np.where(inside, y * wide + x + 1, 0)).flatten(1)


def _fixed(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """A number as a 16.16 fixed point integer."""
    return np.floor(value * 65536 + 0.5).astype(np.int64)


def rearrange(raw: Tensor, origin: Tensor) -> Tensor:
    """(N, 1, H, W) uint8 → the images whose pixels are those at `origin`, (H·W,) or (N, H·W) of `origins`."""
    return F.pad(raw.flatten(1), (1, 0)).gather(1, origin.expand(len(raw), -1)).view_as(raw)


def turned(raw: Tensor, degrees: Tensor) -> Tensor:
    """(N, 1, H, W) uint8 images, each turned by its own angle of (N,)."""
    chunks = zip(raw.split(CHUNK), degrees.split(CHUNK), strict=True)
    return torch.cat([rearrange(images, origins(raw.shape, angles)) for images, angles in chunks])
