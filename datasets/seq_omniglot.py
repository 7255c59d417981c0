"""Split Omniglot by alphabet: 50 tasks, the characters of one alphabet each (14 to 55), 28x28 grey.

Data: Lake et al. 2015, brought from 105x105 to 28x28, ink 255 on 0. Tasks are the 30 alphabets of the
background set, then the 20 of the evaluation set, each in alphabetical order (`--n_tasks 30`: the first
alone; `--permute_classes`: alphabets in an order drawn by the seed). Of a character's 20 drawings the
first 15 are for training, the other 5 for testing. The stream is seen once, one drawing at a time: MER.
"""

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {"n_tasks": 50, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = sources.omniglot(config.run.data_dir)
    alphabets = [name.split("/")[0] for name in source.classes]
    return class_incremental("seq-omniglot", source, Augment(), config, device, groups=alphabets)
