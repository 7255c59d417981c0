"""GEM file: a stream from a `.pt` file of the GEM and MER codes (see --gem_file).

Format: `[d_tr, d_te]`, lists over tasks of `[meta, X, y]`; X is (N, pixels) float in [0, 1], y (N,)
integers, meta whatever `torch.load(weights_only=True)` reads. Such files are made
by `scripts/interop/write_gem_file.py`.

- The number of classes is the largest label + 1; tasks may differ in size. Where no class is in two tasks
  (GEM's split sets) each task has its own classes (class-IL, task-IL), else all have all (domain-IL).
- Images are kept as bytes, so pixels must be multiples of 1/255, to 1/1000 of that step, and are refused
  otherwise: nothing is rounded silently. Only the rows that the run takes are read and checked.
- A row of X is a square grey image (784 = 28x28), or three square channels (3,072 = 3x32x32).
- `index` of a sample counts through the rows taken, task after task; `--validation` takes its share of them.
"""

import sys
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engram.datasets import scenarios
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.given_tasks import given_tasks
from engram.datasets.sources import Source
from engram.utils.checkpoint import DamagedFileError, load_verified
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import DataError

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
TOLERANCE = 1e-3  # of a step of 1/255
CHUNK = 5000  # rows converted at once


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the GEM file benchmark."""

    gem_file: str | None = option(None, "a .pt file of the GEM and MER codes (required)")
    samples_per_task: int = option(
        0, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`: the first `--n_tasks` tasks of the file."""
    assert isinstance(config.benchmark, Options)
    options, seed, stream = config.benchmark, config.run.seed, config.stream
    if not options.gem_file:
        raise DataError("--gem_file is missing: gem-file needs the path of a .pt file of the GEM or MER code")
    path = Path(options.gem_file).expanduser()
    train, test = first_tasks(read(path), stream.n_tasks, path)
    labelled = [*(("training", i, task) for i, task in enumerate(train))]
    labelled += [("test", i, task) for i, task in enumerate(test)]
    checked = [check(task, f"{path}, {split} task {i}") for split, i, task in labelled]
    width = checked[0][0].shape[1]
    if wrong := [x.shape[1] for x, _ in checked if x.shape[1] != width]:
        raise DataError(f"{path}: rows of {width} and of {wrong[0]} pixels; all tasks must have the same")
    shape = image_shape(width, path)
    parts = []
    for (split, i, _), (x, y) in zip(labelled, checked, strict=True):
        count = options.samples_per_task if split == "training" else 0
        rows = torch.from_numpy(scenarios.subset(np.arange(len(y)), count, seed, i))
        parts.append((to_bytes(x, rows, f"{path}, {split} task {i}").view(-1, *shape), y[rows].long()))
    largest = max(int(y.max()) for _, y in checked)
    if largest >= sum(len(y) for _, y in checked):
        raise DataError(f"{path}: label {largest} is out of range: there are fewer samples than classes")
    return assemble(parts[: len(train)], parts[len(train) :], largest + 1, config, device)


def read(path: Path) -> object:
    """The content of the file, its tensors mapped into memory where the format allows it."""
    if not path.is_file():
        raise DataError(f"--gem_file {path}: no such file")
    try:
        return load_verified(path, mmap=True)
    except DamagedFileError as error:
        raise DataError(
            f"{path}: damaged, or holds more than tensors, lists, numbers and text ({error}); write it "
            "again, e.g. with scripts/interop/write_gem_file.py"
        ) from error


def first_tasks(content: object, n_tasks: int, path: Path) -> tuple[list[object], list[object]]:
    """The first `n_tasks` tasks of the training and of the test split, as the file holds them."""
    splits = content if isinstance(content, list | tuple) else ()
    if len(splits) != 2 or not all(isinstance(split, list | tuple) and split for split in splits):
        raise DataError(f"{path}: expected [d_tr, d_te], two lists of tasks")
    train, test = splits
    if len(train) != len(test):
        raise DataError(f"{path}: {len(train)} training tasks but {len(test)} test tasks")
    if n_tasks > len(train):
        raise DataError(f"--n_tasks {n_tasks}: {path} holds {len(train)} tasks; give --n_tasks {len(train)}")
    if n_tasks < len(train):
        print(f"gem-file: the first {n_tasks} of the {len(train)} tasks of {path}", file=sys.stderr)
    return list(train[:n_tasks]), list(test[:n_tasks])


def check(task: object, name: str) -> tuple[Tensor, Tensor]:
    """X (N, pixels) and y (N,) of one task, after a check of form and labels; `name` is for errors."""
    if not isinstance(task, list | tuple) or len(task) != 3:
        raise DataError(f"{name}: expected [meta, X, y]")
    x, y = task[1:]
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.layout != torch.strided:
        raise DataError(f"{name}: X and y must be dense tensors")
    x, y = x.detach(), y.detach()
    if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or not x.numel():
        raise DataError(
            f"{name}: X {tuple(x.shape)} and y {tuple(y.shape)}; expected (N, pixels) and (N,), N > 0"
        )
    if not x.is_floating_point():
        raise DataError(f"{name}: X is {x.dtype}; expected floats in [0, 1]")
    if y.dtype not in WHOLE or int(y.min()) < 0:
        problem = f"a label {int(y.min())}" if y.dtype in WHOLE else f"labels of type {y.dtype}"
        raise DataError(f"{name}: {problem}; expected integers from 0 on")
    return x, y


def image_shape(width: int, path: Path) -> tuple[int, int, int]:
    """(channels, height, width) of a row of so many pixels."""
    for channels in (1, 3):
        side = isqrt(width // channels)
        if channels * side**2 == width:
            return channels, side, side
    raise DataError(f"{path}: rows of {width} pixels are no square image (784 = 28x28, 3072 = 3x32x32)")


def to_bytes(x: Tensor, rows: Tensor, name: str) -> Tensor:
    """The rows of x as (len(rows), pixels) uint8; raises `DataError` where a float is no such value."""
    chunks = []
    for chunk in rows.split(CHUNK):
        pixels = 255 * x.index_select(0, chunk).float()
        if not (pixels.min() >= 0 and pixels.max() <= 255 + TOLERANCE):  # also true of NaN
            low, high = pixels.min().item() / 255, pixels.max().item() / 255
            raise DataError(f"{name}: pixels from {low:.4g} to {high:.4g}; expected [0, 1]")
        steps = pixels.round()
        if (steps - pixels).abs().max() > TOLERANCE:
            raise DataError(
                f"{name}: pixels are not multiples of 1/255; images are kept as bytes, so write them "
                "with X = (255 * X).round() / 255 if that loss is acceptable"
            )
        chunks.append(steps.to(torch.uint8))
    return torch.cat(chunks)


TaskSamples = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8 and labels (N,) of one task


def assemble(
    train: list[TaskSamples], test: list[TaskSamples], n_classes: int, config: Config, device: torch.device
) -> Benchmark:
    """The benchmark whose task t has the t-th element of `train` and of `test`."""
    names = tuple(map(str, range(n_classes)))
    (train_x, train_y), (test_x, test_y) = (
        map(torch.cat, zip(*parts, strict=True)) for parts in (train, test)
    )
    source = Source("gem-file", train_x, train_y, test_x, test_y, names)
    of_train, of_test = (  # the task of each sample
        torch.repeat_interleave(torch.tensor([len(y) for _, y in parts])) for parts in (train, test)
    )
    return given_tasks("gem-file", source, (of_train, of_test), Augment(), config, device)
