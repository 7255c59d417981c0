"""Permuted MNIST: 20 tasks of all ten digits, each with its own order of the pixels (domain-IL).

Source: Kirkpatrick et al. 2017 (EWC); Lopez-Paz & Ranzato 2017 (GEM), whose script permutes the first task
too, as mammoth does and we do. Batches of 128, one epoch: mammoth. With `--padding 2` the images are those
of van de Ven & Tolias 2019 (arXiv 1904.07734), whose code adds a black border before it permutes.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.streams import domain_incremental
from engram.utils import seeding
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 128, "lr": 0.1, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the permuted MNIST benchmark."""

    padding: int = option(
        0, "black pixels added on every side before pixels are permuted, e.g. 2 for 32x32", ge=0, le=100
    )


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    source = padded(sources.mnist(config.run.data_dir), config.benchmark.padding)
    return permuted("perm-mnist", source, config, device)


def permuted(
    name: str, source: sources.Source, config: Config, device: torch.device, samples_per_task: int = 0
) -> Benchmark:
    """The domains of a source that differ in the order of the pixels; see `domain_incremental`."""
    n_pixels = source.train_x[0].numel()
    orders = [draw(n_pixels, config.run.seed, task) for task in range(config.stream.n_tasks)]
    transforms = [partial(permute, order=order.to(device)) for order in orders]
    drawn = {"permutations": [order.tolist() for order in orders]}
    return domain_incremental(name, source, Augment(), transforms, config, device, drawn, samples_per_task)


def padded(source: sources.Source, n: int) -> sources.Source:
    """The source with `n` black pixels more on every side of its images."""
    train_x, test_x = (F.pad(x, (n,) * 4) for x in (source.train_x, source.test_x))
    return replace(source, train_x=train_x, test_x=test_x)


def draw(n_pixels: int, seed: int, task: int) -> Tensor:
    """The task's permutation, (n_pixels,): the old position of each pixel."""
    return torch.randperm(n_pixels, generator=seeding.generator(seed, "transforms", task))


def permute(raw: Tensor, order: Tensor) -> Tensor:
    """(N, C, H, W) uint8 with every image's pixels in the given order."""
    # gather: the same as index_select along the rows, three times faster on a CPU
    return raw.flatten(1).gather(1, order.expand(len(raw), -1)).view_as(raw)
