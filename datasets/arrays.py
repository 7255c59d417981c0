"""Arrays: a user's own samples, from NumPy files, as a source of bytes or of standardised float32.

What the numbers mean is decided from the training samples and said in a line, never guessed silently; what
cannot be told is refused.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.datasets import array_values
from engram.datasets.array_layout import as_samples
from engram.datasets.sources import Source
from engram.utils.errors import DataError, numpy_reason

SPLITS = ("train", "test")
NEEDED = ("train_x", "train_y", "test_x", "test_y")
GROUPS = ("domain", "task")  # optional: of each sample, train_domain and test_domain, ...
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Groups:
    """The domain or task of each sample, by its number in order of the values: (N,) and (M,)."""

    kind: str
    train: Tensor
    test: Tensor
    names: tuple[str, ...]


def read(path: Path, layout: str, held_out: bool) -> tuple[Source, Groups | None]:
    """The source in a .npz file or a folder of .npy files, and its samples' domains or tasks.

    layout: `nchw`, `nhwc` or `auto`. held_out: evaluation is on training samples, so no test sample is read.
    """
    arrays = load(path)
    return source_of("seq-arrays", arrays, str(path), layout, held_out), _groups(arrays, path)


def source_of(name: str, arrays: Mapping[str, Array], path: str, layout: str, held_out: bool) -> Source:
    """The source called `name` of the arrays `train_x`, `train_y`, `test_x`, `test_y`; path: for errors."""
    notes: list[str] = []
    x = {split: as_samples(arrays[f"{split}_x"], f"{path}, {split}_x", layout, notes) for split in SPLITS}
    _check_same_kind(x, path)
    notes = list(dict.fromkeys(notes))  # both splits say the same
    y = {split: _labels(arrays[f"{split}_y"], len(x[split]), f"{path}, {split}_y") for split in SPLITS}
    names, numbers = _classes(y["train"], y["test"], path, notes)
    if held_out:
        x["test"], numbers["test"] = x["test"][:0], numbers["test"][:0]
    converted, note = array_values.converted(x["train"], x["test"], path)
    extra = sorted(arrays.keys() - {*NEEDED, *(f"{s}_{g}" for s in SPLITS for g in GROUPS)})
    notes += [note, *([f"not used: {', '.join(extra)}"] if extra else [])]
    (train_x, test_x), labels = converted, [torch.from_numpy(numbers[split]) for split in SPLITS]
    return Source(name, train_x, labels[0], test_x, labels[1], names, tuple(notes))


def load(path: Path) -> Mapping[str, Array]:
    """The arrays by name; a folder's stay on disk until they are used. Nothing in them can run code."""
    try:
        if path.is_dir():
            files = {file.stem: file for file in sorted(path.glob("*.npy"))}
            arrays = {n: np.load(f, mmap_mode="c", allow_pickle=False) for n, f in files.items()}
        else:
            content = np.load(path, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise DataError(
                    f"--arrays {path}: one array; expected a .npz file, or a folder of .npy files"
                )
            with content:
                arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise DataError(f"--arrays {path}: no such file or folder") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError, AttributeError) as error:
        raise DataError(
            f"--arrays {path}: not readable as NumPy arrays ({numpy_reason(error)[:120]})"
        ) from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        there = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"--arrays {path}: {', '.join(missing)} missing; it holds {there}")
    return arrays


def _check_same_kind(x: Mapping[str, Array], path: str) -> None:
    train, test = x["train"], x["test"]
    if train.shape[1:] != test.shape[1:]:
        shapes = f"{train.shape[1:]} and {test.shape[1:]}"
        raise DataError(f"{path}: training and test samples have different shapes: {shapes}")
    if train.dtype.kind != test.dtype.kind or (train.dtype != test.dtype and train.dtype.kind in "iu"):
        raise DataError(f"{path}: train_x is {train.dtype} and test_x {test.dtype}; both must be of one type")


def _labels(y: Array, n: int, name: str) -> Array:
    """(N,) labels: integers or text."""
    if y.ndim == 2:
        hint = f"{name.split(', ')[-1]}[:, 0]" if y.shape[1] == 1 else "y.argmax(1) of one-hot rows"
        raise DataError(f"{name}: shape {y.shape}; expected one label a sample (N,), e.g. {hint}")
    if y.ndim != 1 or len(y) != n:
        raise DataError(f"{name}: shape {y.shape}; expected one label for each of the {n} samples")
    if y.dtype.kind not in "iubU":
        raise DataError(f"{name}: labels of type {y.dtype}; expected integers or text")
    return y


def _classes(
    train: Array, test: Array, path: str, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """The classes' names, in the order of the labels, and the labels as numbers from 0 on."""
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise DataError(f"{path}: labels are text in one split and numbers in the other")
    classes, numbers = np.unique(train, return_inverse=True)
    unknown = np.setdiff1d(test, classes)
    if len(unknown):
        raise DataError(f"{path}: test_y has {unknown[0]}, which no training sample is labelled with")
    names = tuple(map(str, classes.tolist()))
    if train.dtype.kind != "U" and not np.array_equal(classes, np.arange(len(classes))):
        notes.append(f"{len(names)} classes: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}")
    of_test = np.searchsorted(classes, test)
    return names, {"train": numbers.astype(np.int64).reshape(-1), "test": of_test.astype(np.int64)}


def _groups(arrays: Mapping[str, Array], path: Path) -> Groups | None:
    """What `train_domain` and `test_domain`, or `train_task` and `test_task`, say; None without them."""
    kinds = [kind for kind in GROUPS if any(f"{split}_{kind}" in arrays for split in SPLITS)]
    if not kinds:
        return None
    if len(kinds) > 1:
        raise DataError(f"{path}: holds domains and tasks; keep one of the two")
    kind = kinds[0]
    given = []
    for split in SPLITS:
        name = f"{split}_{kind}"
        if name not in arrays:
            raise DataError(f"{path}: {name} is missing; both splits need a {kind} for each sample")
        given.append(_labels(arrays[name], len(arrays[f"{split}_y"]), f"{path}, {name}"))
    values = np.unique(given[0])
    if given[0].dtype.kind != given[1].dtype.kind or not np.array_equal(values, np.unique(given[1])):
        raise DataError(f"{path}: train_{kind} and test_{kind} do not have the same values")
    train, test = (torch.from_numpy(np.searchsorted(values, of_split)) for of_split in given)
    return Groups(kind, train, test, tuple(map(str, values.tolist())))
