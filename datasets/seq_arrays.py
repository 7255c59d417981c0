"""Your own arrays: features or images from a .npz file or a folder of .npy files (see --arrays).

Arrays: `train_x`, `train_y`, `test_x`, `test_y`; optional `train_task` and `test_task` say which task each
sample belongs to, `train_domain` and `test_domain` which domain (domain-IL). Without them `--n_tasks`
splits the classes. x is (N, D) vectors, (N, H, W) grey images, or images (N, C, H, W) or (N, H, W, C): told
apart where one of the two axes is 1, 3 or 4, else `--array_layout` says it. y is (N,) integers or text.

Pixels (whole numbers 0 to 255, or multiples of 1/255 in [0, 1]) are kept as bytes and scaled to [0, 1];
all other numbers, such as features, 16-bit images and counts, become float32 and are standardised once by
the training set's mean and deviation. What was recognised is said when a run starts. NaN, infinity, complex
numbers, objects and one-hot labels are refused. A folder's files stay on disk until they are used.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from engram.datasets import arrays
from engram.datasets.array_layout import LAYOUTS
from engram.datasets.augment import without_draws
from engram.datasets.benchmark import Benchmark
from engram.datasets.given_tasks import check_count, given_tasks
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import DataError

DEFAULTS = {"n_tasks": 5, "n_epochs": 10, "batch_size": 32, "lr": 0.03, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the benchmark of a user's arrays."""

    arrays: str | None = option(
        None, "a .npz file, or a folder of .npy files, with train_x, train_y, test_x, test_y (required)"
    )
    array_layout: str = option(
        "auto", "axes of images: nchw, nhwc, or auto: the only axis of 1, 3 or 4 is the channels",
        choices=LAYOUTS,
    )  # fmt: skip


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    options, stream = config.benchmark, config.stream
    if not options.arrays:
        raise DataError("--arrays is missing: seq-arrays needs a .npz file or a folder of .npy files")
    path = Path(options.arrays).expanduser()
    source, groups = arrays.read(path, options.array_layout, held_out=bool(stream.validation))
    augment = without_draws(source.train_x)
    if groups is None:
        benchmark = class_incremental("seq-arrays", source, augment, config, device)
    else:
        check_count(stream.n_tasks, len(groups.names), groups.kind, path)
        task_of = (groups.train, groups.test)
        domains = True if groups.kind == "domain" else None
        benchmark = given_tasks("seq-arrays", source, task_of, augment, config, device, domains)
    empty = [task.id for task in benchmark.tasks if not len(task.test_index)]
    if empty:
        raise DataError(f"{path}: task {empty[0]} has no test sample")
    return benchmark
