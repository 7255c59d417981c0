"""MNIST Many Permutations of MER: 100 tasks of 200 digits, pixels reordered by task (domain-IL).

Source: Riemer et al. 2019 (MER). As mnist-permutations, with more and shorter tasks; the permutations of
the tasks that both have are the same.
"""

from dataclasses import dataclass

from engram.datasets import mnist_permutations
from engram.datasets.benchmark import Benchmark
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 100, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of MNIST Many Permutations."""

    samples_per_task: int = option(
        200, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config, device) -> Benchmark:
    """The stream for a resolved configuration, on `device`."""
    return mnist_permutations.build(config, device, "mnist-manypermutations")
