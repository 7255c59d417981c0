"""Any data set of PyTorch's or Hugging Face's kind, by a function of your own that returns it.

`--dataset_from my_data.py:load` or `package.module:load` calls `load()` without arguments. It returns a
training and a test set, or a dict with `train` and `test` (Hugging Face's `load_dataset`); each has a length
and gives (sample, label), as torchvision's do, or a dict with image and label. Samples are PIL
images, tensors or arrays, all of one shape; they are read once, into memory, and `--n_tasks` splits their
classes. Pixels are kept as bytes and other numbers are standardised, as in seq-arrays.
"""

from dataclasses import dataclass

import torch

from engram.datasets import arrays
from engram.datasets.augment import without_draws
from engram.datasets.benchmark import Benchmark
from engram.datasets.sample_lists import arrays_from
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import DataError

DEFAULTS = {"n_tasks": 5, "n_epochs": 10, "batch_size": 32, "lr": 0.03, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the benchmark of a user's function."""

    dataset_from: str | None = option(
        None, "module:function or file.py:function that returns a training and a test set (required)"
    )


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    given = config.benchmark.dataset_from
    if not given:
        raise DataError("--dataset_from is missing: seq-dataset needs module:function or file.py:function")
    held_out = bool(config.stream.validation)
    source = arrays.source_of("seq-dataset", arrays_from(given), given, "auto", held_out)
    augment = without_draws(source.train_x)
    return class_incremental("seq-dataset", source, augment, config, device)
