"""Split Fashion-MNIST: 5 tasks of 2 kinds of clothing, 28x28 grey.

Data: Xiao et al. 2017, arXiv 1708.07747. Settings of seq-mnist.
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
    source = sources.fmnist(config.run.data_dir)
    return class_incremental("seq-fmnist", source, Augment(), config, device)
