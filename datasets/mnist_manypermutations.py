"""MNIST Many Permutations of MER: 100 tasks of 200 digits, pixels reordered by task (domain-IL).

Source: Riemer et al. 2019 (MER). As mnist-permutations, with more and shorter tasks; the permutations of
the tasks that both have are the same.
"""

from dataclasses import dataclass

import torch

from engram.datasets import sources
from engram.datasets.benchmark import Benchmark
from engram.datasets.perm_mnist import permuted
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 100, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the MNIST Many Permutations benchmark."""

    samples_per_task: int = option(
        200, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    source, count = sources.mnist(config.run.data_dir), config.benchmark.samples_per_task
    return permuted("mnist-manypermutations", source, config, device, count)
