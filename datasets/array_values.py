"""Values of a user's arrays: bytes where that loses nothing, else float32 standardised by the training set.

Bytes are what images of every other benchmark are, so that all methods take them and large sets can stay on
disk. All decisions are made over both splits, in chunks: the arrays may be larger than the memory.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.utils.errors import DataError

CHUNK_BYTES = 64 << 20
TOLERANCE = 1e-3  # of a step of 1/255
BRIGHT = 128  # whole numbers that never reach this are no pixel values: counts, digits of 17 grey levels
Array = NDArray[np.generic]
Convert = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def converted(train: Array, test: Array, name: str) -> tuple[tuple[Tensor, Tensor], str]:
    """Both splits as tensors of one kind, and a line that says which; NaN and infinity are refused."""
    scale = _byte_scale(train, test, name)
    if scale == 1 and train.dtype == np.uint8:
        return (_tensor(train), _tensor(test)), "pixels 0 to 255, kept as bytes"
    if scale:
        note = "pixels 0 to 255" if scale == 1 else "multiples of 1/255 in [0, 1]"
        return _both(train, test, np.uint8, lambda chunk: np.rint(chunk * scale)), f"{note}, kept as bytes"
    mean, std = moments(train)
    what = "feature" if train.ndim == 2 else "channel"
    note = f"{train.dtype}, standardised once: each {what} by its mean and deviation in the training set"
    return _both(train, test, np.float32, lambda chunk: (chunk - mean) / std), note


def _byte_scale(train: Array, test: Array, name: str) -> int:
    """What values are multiplied by to become bytes, without loss: 1 or 255; 0 where they cannot."""
    steps, whole, largest = True, True, 0.0
    for split, x in (("train_x", train), ("test_x", test)):
        for chunk in _chunks(x):
            low, high = (float(chunk.min()), float(chunk.max()))
            if not (np.isfinite(low) and np.isfinite(high)):  # NaN is not finite either
                raise DataError(f"{name}, {split}: holds NaN or infinity; leave those samples out")
            if split == "train_x":
                largest = max(largest, high)
            steps = steps and low >= 0 and high <= 1 and _are_whole(255 * chunk, TOLERANCE)
            whole = whole and low >= 0 and high <= 255 and _are_whole(chunk, 0)
    if steps:
        return 255
    return int(whole and largest >= BRIGHT)


def _are_whole(values: NDArray[np.float64], tolerance: float) -> bool:
    return bool((np.abs(values - np.rint(values)) <= tolerance).all())


def moments(x: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each feature (D,) or channel (C, 1, 1); deviation 1 where nothing varies."""
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    n = x.size // x.shape[1]
    mean = sum(chunk.sum(axes) for chunk in _chunks(x)) / n
    shaped = np.reshape(mean, (-1, *(1,) * (x.ndim - 2)))
    variance = sum(np.square(chunk - shaped).sum(axes) for chunk in _chunks(x)) / n
    std = np.sqrt(variance)
    std = np.where(std > 1e-12 * np.maximum(1, np.abs(mean)), std, 1.0)
    return shaped, std.reshape(shaped.shape)


def _chunks(x: Array) -> Iterator[NDArray[np.float64]]:
    """The samples as float64, some megabytes at a time."""
    size = max(1, CHUNK_BYTES // (8 * max(1, x[:1].size)))
    for start in range(0, len(x), size):
        yield x[start : start + size].astype(np.float64)


def _both(train: Array, test: Array, dtype: type[np.generic], convert: Convert) -> tuple[Tensor, Tensor]:
    return _filled(train, dtype, convert), _filled(test, dtype, convert)


def _filled(x: Array, dtype: type[np.generic], convert: Convert) -> Tensor:
    """The converted samples in a new tensor, chunk by chunk."""
    target = np.empty(x.shape, dtype=dtype)
    start = 0
    for chunk in _chunks(x):
        target[start : start + len(chunk)] = convert(chunk)
        start += len(chunk)
    return torch.from_numpy(target)


def _tensor(x: Array) -> Tensor:
    """A tensor over the array's own memory, which may be a file; a transposed array is copied."""
    return torch.from_numpy(np.ascontiguousarray(x))
