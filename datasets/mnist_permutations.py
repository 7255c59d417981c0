"""MNIST Permutations of GEM and MER: 20 tasks of 1,000 digits, pixels reordered by task (domain-IL).

Source: Lopez-Paz & Ranzato 2017 (GEM), Riemer et al. 2019 (MER). The first task is permuted too, as in
GEM's script. One sample at a time, one epoch, all 10,000 test digits: MER.
"""

from dataclasses import dataclass

import torch

from engram.datasets import sources
from engram.datasets.benchmark import Benchmark
from engram.datasets.perm_mnist import permuted
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the MNIST Permutations benchmark."""

    samples_per_task: int = option(
        1000, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    source, count = sources.mnist(config.run.data_dir), config.benchmark.samples_per_task
    return permuted("mnist-permutations", source, config, device, count)
