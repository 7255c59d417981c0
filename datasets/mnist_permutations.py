"""MNIST Permutations of GEM and MER: 20 tasks of 1,000 digits, pixels reordered by task (domain-IL).

Source: Lopez-Paz & Ranzato 2017 (GEM), Riemer et al. 2019 (MER). The first task is permuted too, as in
GEM's script. One sample at a time, one epoch, all 10,000 test digits: MER.
"""

from dataclasses import dataclass
from functools import partial

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark, domain_incremental
from engram.datasets.perm_mnist import draw, permute
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of MNIST Permutations."""

    samples_per_task: int = option(
        1000, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config, device, name: str = "mnist-permutations") -> Benchmark:
    """The stream for a resolved configuration, on `device`."""
    source = sources.mnist(config.run.data_dir)
    n_pixels = source.train_x[0].numel()
    orders = [draw(n_pixels, config.run.seed, task) for task in range(config.stream.n_tasks)]
    changes = [partial(permute, order=order.to(device)) for order in orders]
    drawn = {"permutations": [order.tolist() for order in orders]}
    return domain_incremental(
        name, source, Augment(), changes, config, device, drawn, config.benchmark.samples_per_task
    )
