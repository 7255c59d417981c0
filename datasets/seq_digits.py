"""Split digits: scikit-learn's real 8x8 digits, 5 tasks of 2 classes, no download."""

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {"n_tasks": 5, "n_epochs": 5, "batch_size": 10, "lr": 0.1, "backbone": "mlp"}


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return class_incremental("seq-digits", sources.digits(), Augment(), config, device)
