"""GEM file: a stream from a `.pt` file of the GEM and MER codes (see --gem_file).

Format: `[d_tr, d_te]`, lists over tasks of `[meta, X, y]`; X is (N, pixels) float in [0, 1], y (N,)
integers, meta whatever `torch.load(weights_only=True)` reads. Such files are made
by `scripts/interop/write_gem_file.py`.

- The number of classes is the largest label + 1; tasks may differ in size (domain-IL).
- Images are kept as bytes, so pixels must be multiples of 1/255, to 1/1000 of that step, and are refused
  otherwise: nothing is rounded silently. Only the rows that the run takes are read and checked.
- A row is a square grey image (784 = 28x28), or three square channels (3,072 = 3x32x32).
- `index` of a sample counts through the rows taken, task after task; `--validation` takes its share of them.
"""

import sys
import zipfile
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram.datasets import scenarios
from engram.datasets.augment import Augment, normalised_as_asked
from engram.datasets.benchmark import Benchmark, Task, with_validation
from engram.datasets.sources import DataError, Source
from engram.datasets.storage import placed
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
TOLERANCE = 1e-3  # of a step of 1/255
CHUNK = 5000  # rows converted at once


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of GEM files."""

    gem_file: str | None = option(None, "a .pt file of the GEM and MER codes (required)")
    samples_per_task: int = option(
        0, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config, device) -> Benchmark:
    """The stream for a resolved configuration, on `device`: the first `--n_tasks` tasks of the file."""
    options, seed, stream = config.benchmark, config.run.seed, config.stream
    if not options.gem_file:
        raise DataError("--gem_file is missing: gem-file needs the path of a .pt file of the GEM or MER code")
    path = Path(options.gem_file).expanduser()
    train, test = first_tasks(read(path), stream.n_tasks, path)
    checked = [check(task, f"{path}, {split} task {i}") for split, i, task in named(train, test)]
    width = checked[0][0].shape[1]
    if wrong := [x.shape[1] for x, _ in checked if x.shape[1] != width]:
        raise DataError(f"{path}: rows of {width} and of {wrong[0]} pixels; all tasks must have the same")
    shape = image_shape(width, path)
    parts = []
    for (split, i, _), (x, y) in zip(named(train, test), checked, strict=True):
        count = options.samples_per_task if split == "training" else 0
        rows = torch.from_numpy(scenarios.subset(np.arange(len(y)), count, seed, i))
        parts.append((to_bytes(x, rows, f"{path}, {split} task {i}").view(-1, *shape), y[rows].long()))
    largest = max(int(y.max()) for _, y in checked)
    if largest >= sum(len(y) for _, y in checked):
        raise DataError(f"{path}: label {largest} is out of range: there are fewer samples than classes")
    return assemble(parts[: len(train)], parts[len(train) :], largest + 1, config, device)


def named(train: list, test: list) -> list[tuple[str, int, Any]]:
    """(split, number in the split, task) of all tasks, training first."""
    return [("training", i, task) for i, task in enumerate(train)] + [
        ("test", i, task) for i, task in enumerate(test)
    ]


def read(path: Path) -> Any:
    """The content of the file, its tensors mapped into memory where the format allows it."""
    if not path.is_file():
        raise DataError(f"--gem_file {path}: no such file")
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling damaged bytes can raise anything
        reason = " ".join(str(error).split())[:150]
        raise DataError(
            f"{path}: damaged, or holds more than tensors, lists, numbers and text ({type(error).__name__}: "
            f"{reason}); write it again, e.g. with scripts/interop/write_gem_file.py"
        ) from error


def first_tasks(content: Any, n_tasks: int, path: Path) -> tuple[list, list]:
    """The first tasks of both splits."""
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


def check(task: Any, where: str) -> tuple[Tensor, Tensor]:
    """X and y of one task, their form and labels checked."""
    if not isinstance(task, list | tuple) or len(task) != 3:
        raise DataError(f"{where}: expected [meta, X, y]")
    x, y = task[1:]
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.layout != torch.strided:
        raise DataError(f"{where}: X and y must be dense tensors")
    x, y = x.detach(), y.detach()
    if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or not x.numel():
        raise DataError(
            f"{where}: X {tuple(x.shape)} and y {tuple(y.shape)}; expected (N, pixels) and (N,), N > 0"
        )
    if not x.is_floating_point():
        raise DataError(f"{where}: X is {x.dtype}; expected floats in [0, 1]")
    if y.dtype not in WHOLE or int(y.min()) < 0:
        found = f"a label {int(y.min())}" if y.dtype in WHOLE else f"labels of type {y.dtype}"
        raise DataError(f"{where}: {found}; expected integers from 0 on")
    return x, y


def image_shape(width: int, path: Path) -> tuple[int, int, int]:
    """(channels, height, width) of a row of so many pixels."""
    for channels in (1, 3):
        side = isqrt(width // channels)
        if channels * side**2 == width:
            return channels, side, side
    raise DataError(f"{path}: rows of {width} pixels are no square image (784 = 28x28, 3072 = 3x32x32)")


def to_bytes(x: Tensor, rows: Tensor, where: str) -> Tensor:
    """(len(rows), pixels) uint8, exactly what the floats say, or `DataError`."""
    parts = []
    for chunk in rows.split(CHUNK):
        pixels = 255 * x.index_select(0, chunk).float()
        if not (pixels.min() >= 0 and pixels.max() <= 255 + TOLERANCE):  # also true of NaN
            low, high = pixels.min().item() / 255, pixels.max().item() / 255
            raise DataError(f"{where}: pixels from {low:.4g} to {high:.4g}; expected [0, 1]")
        steps = pixels.round()
        if (steps - pixels).abs().max() > TOLERANCE:
            raise DataError(
                f"{where}: pixels are not multiples of 1/255; images are kept as bytes, so write them "
                "with X = (255 * X).round() / 255 if that loss is acceptable"
            )
        parts.append(steps.to(torch.uint8))
    return torch.cat(parts)


def assemble(train: list, test: list, n_classes: int, config, device) -> Benchmark:
    """The benchmark whose task t has the t-th part of the training and of the test samples."""
    names = tuple(map(str, range(n_classes)))
    (train_x, train_y), (test_x, test_y) = (
        map(torch.cat, zip(*parts, strict=True)) for parts in (train, test)
    )
    source = Source("gem-file", train_x, train_y, test_x, test_y, names)
    owner, test_owner = (
        torch.repeat_interleave(torch.tensor([len(y) for _, y in parts])) for parts in (train, test)
    )
    seed, percent = config.run.seed, config.stream.validation
    source, kept = with_validation(placed(source, config, device), percent, seed, strata=owner)
    if percent:
        held = np.setdiff1d(np.arange(len(owner)), kept)
        test_owner = owner[torch.from_numpy(held)]
    kept, classes = torch.from_numpy(kept), tuple(range(n_classes))
    tasks = [
        Task(i, classes, (i,), kept[owner[kept] == i], torch.nonzero(test_owner == i).view(-1))
        for i in range(len(train))
    ]
    scenarios.refuse_order(config.stream.class_order, "gem-file", "whose tasks are as the file has them")
    order = scenarios.class_order(n_classes, seed, permute=False)
    scenario = config.stream.scenario or ("task-il" if config.stream.multi_head else "domain-il")
    if scenario == "class-il":
        tasks = scenarios.with_own_outputs(tasks)
    augment = normalised_as_asked(Augment(), config, source.train_x.shape[1])
    return Benchmark("gem-file", scenario, source, tasks, augment, order, seed, device)
