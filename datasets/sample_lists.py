"""Sample lists: arrays of the data sets (torchvision's, Hugging Face's) that a user's function returns."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engram.utils.errors import DataError

IMAGES, LABELS = ("image", "img", "x", "pixel_values", "features"), ("label", "labels", "fine_label", "y")
Arrays = dict[str, NDArray[np.generic]]


def arrays_from(given: str) -> Arrays:
    """`train_x`, `train_y`, `test_x` and `test_y` of what `module:function` or `file.py:function` returns.

    It is called without arguments and returns a training and a test set, or a dict with `train` and `test`;
    each is a sequence of (sample, label) or of dicts. Raises `DataError` for anything else.
    """
    returned = _function(given)()
    if isinstance(returned, Mapping):
        if not {"train", "test"} <= returned.keys():
            raise DataError(f"{given}: returned {', '.join(map(str, returned))}; expected train and test")
        returned = (returned["train"], returned["test"])
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise DataError(f"{given}: expected a training and a test set, not {type(returned).__name__}")
    arrays: Arrays = {}
    for split, samples in zip(("train", "test"), returned, strict=True):
        arrays[f"{split}_x"], arrays[f"{split}_y"] = _stacked(samples, f"{given}, {split}")
    return arrays


def _function(given: str) -> Callable[[], object]:
    """The function that `module:function` names; a module below the current folder is a file."""
    module_name, _, name = given.rpartition(":")
    if not module_name or not name:
        raise DataError(f"--dataset_from {given}: expected module:function or file.py:function")
    path = Path(module_name).expanduser()
    if path.suffix != ".py":
        path = Path(*module_name.split(".")).with_suffix(".py")
    try:
        if path.is_file():
            spec = importlib.util.spec_from_file_location(f"engram_data_{path.stem}", path.resolve())
            assert spec and spec.loader, "a file of Python"
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(f"--dataset_from {given}: cannot be imported ({error})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"--dataset_from {given}: {module_name} has no function {name}")
    return function  # type: ignore[no-any-return]


def _stacked(samples: object, name: str) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Samples (N, ...) and labels (N,) of a sequence; all samples must have one shape."""
    if not isinstance(samples, Sequence) and not (
        hasattr(samples, "__len__") and hasattr(samples, "__getitem__")
    ):
        raise DataError(f"{name}: a {type(samples).__name__} has no length and no order; expected a sequence")
    pairs = [_pair(samples[i], f"{name}[{i}]") for i in range(len(samples))]
    if not pairs:
        raise DataError(f"{name}: holds no sample")
    shapes = {x.shape for x, _ in pairs}
    if len(shapes) > 1:
        raise DataError(
            f"{name}: samples have shapes {', '.join(map(str, sorted(shapes)[:3]))}; resize them to one"
        )
    return np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs])


def _pair(sample: object, name: str) -> tuple[NDArray[np.generic], object]:
    """The array and the label of (sample, label, ...) or of a dict such as Hugging Face's."""
    if isinstance(sample, Mapping):
        x, y = _first(sample, IMAGES, name), _first(sample, LABELS, name)
    elif isinstance(sample, tuple | list) and len(sample) >= 2:
        x, y = sample[:2]
    else:
        raise DataError(f"{name}: a {type(sample).__name__}; expected (sample, label) or a dict")
    return _array(x), y.item() if isinstance(y, torch.Tensor) else y


def _first(sample: Mapping[str, object], names: tuple[str, ...], name: str) -> object:
    for key in names:
        if key in sample:
            return sample[key]
    raise DataError(f"{name}: has {', '.join(map(str, sample))}; expected one of {', '.join(names)}")


def _array(x: object) -> NDArray[np.generic]:
    """An array of a tensor, a list or a PIL image; of an image with its channels first."""
    if isinstance(x, Image.Image):
        pixels = np.asarray(x if x.mode[0] in "LIF" and x.mode != "LA" else x.convert("RGB"))
        return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
