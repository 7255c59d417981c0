"""Split MNIST: 5 tasks of 2 digits, 28x28 grey.

Data: LeCun et al. 1998. Split, 1 epoch, pixels in [0, 1] and no augmentation as in mammoth, whose batches
are of 64 by default, here of 10; split introduced by Zenke et al. 2017 (SI).
"""

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {"n_tasks": 5, "n_epochs": 1, "batch_size": 10, "lr": 0.1, "backbone": "mlp"}


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = sources.mnist(config.run.data_dir)
    return class_incremental("seq-mnist", source, Augment(), config, device)
