"""Permuted MNIST: 20 tasks of all ten digits, each with its own order of the pixels (domain-IL).

Source: Kirkpatrick et al. 2017 (EWC); Lopez-Paz & Ranzato 2017 (GEM), whose script permutes the first task
too, as mammoth does and we do. Batches of 128, one epoch: mammoth.
"""

from functools import partial

import torch
from torch import Tensor

from datasets import sources
from datasets.augment import Augment
from datasets.benchmark import Benchmark, domain_incremental
from utils import seeding

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 128, "lr": 0.1, "backbone": "mlp"}


def build(config, device) -> Benchmark:
    """The stream for a resolved configuration, on `device`."""
    source = sources.mnist(config.run.data_dir)
    n_pixels = source.train_x[0].numel()
    orders = [draw(n_pixels, config.run.seed, task) for task in range(config.stream.n_tasks)]
    changes = [partial(permute, order=order.to(device)) for order in orders]
    drawn = {"permutations": [order.tolist() for order in orders]}
    return domain_incremental("perm-mnist", source, Augment(), changes, config, device, drawn)


def draw(n_pixels: int, seed: int, task: int) -> Tensor:
    """The task's permutation, (n_pixels,): which pixel comes to each place."""
    return torch.randperm(n_pixels, generator=seeding.generator(seed, "transforms", task))


def permute(raw: Tensor, order: Tensor) -> Tensor:
    """(N, C, H, W) uint8 with every image's pixels in the given order."""
    # gather: the same as index_select along the rows, three times faster on a CPU
    return raw.flatten(1).gather(1, order.expand(len(raw), -1)).view_as(raw)
