"""Layout of a user's array: vectors (N, D), or images, whose channels come first or last."""

import numpy as np
from numpy.typing import NDArray

from engram.utils.errors import DataError

CHANNELS = (1, 3, 4)  # of images whose layout can be told: grey, RGB, RGBA
LAYOUTS = ("auto", "nchw", "nhwc")
Array = NDArray[np.generic]


def as_samples(x: Array, name: str, layout: str, notes: list[str]) -> Array:
    """Vectors (N, D), or images (N, C, H, W), of an array of numbers; adds what was recognised to `notes`.

    Raises `DataError` for another kind or shape, and for images whose channels may be either axis.
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: holds {x.dtype}; expected integers or floats")
    if x.ndim not in (2, 3, 4) or not x.size:
        raise DataError(
            f"{name}: shape {x.shape}; expected vectors (N, D) or images (N, H, W) to (N, C, H, W)"
        )
    if x.ndim == 2:
        notes.append(f"vectors of {x.shape[1]} numbers")
        return x
    if x.ndim == 3:
        notes.append(f"grey images, {x.shape[1]}x{x.shape[2]}")
        return x[:, None]
    if layout == "auto":
        layout = _recognised(x.shape, name)
    if layout == "nhwc":
        x = np.moveaxis(x, 3, 1)
    _, channels, height, width = x.shape
    notes.append(f"images, {height}x{width}, {channels} channels ({layout.upper()})")
    return x


def _recognised(shape: tuple[int, ...], name: str) -> str:
    """`nchw` or `nhwc`, whichever has the only axis that can be the channels."""
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        axes = f"{shape[1]} or the {shape[3]}"
        raise DataError(
            f"{name}: shape {shape}: the channels may be the {axes}; say which: --array_layout nchw or nhwc"
        )
    return "nchw" if first else "nhwc"
