"""MNIST Rotations of GEM and MER: 20 tasks of 1,000 digits, turned ever further (domain-IL).

Source: Lopez-Paz & Ranzato 2017 (GEM), Riemer et al. 2019 (MER). Task t's angle is uniform in bin t of
`--n_tasks` equal bins of [0, 180] degrees, as in GEM's script (which does not seed that draw); pixels are
those of `PIL.Image.rotate`, as there. One sample at a time, one epoch, all 10,000 test digits: MER.
"""

from dataclasses import dataclass
from functools import partial

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.rotation import origins, rearrange
from engram.datasets.streams import domain_incremental
from engram.utils import seeding
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 1, "lr": 0.01, "backbone": "mlp"}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the MNIST Rotations benchmark."""

    samples_per_task: int = option(
        1000, "at most so many training samples of each task, drawn by the seed; 0: all", ge=0
    )


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    source, n_tasks = sources.mnist(config.run.data_dir), config.stream.n_tasks
    angles = [draw(config.run.seed, task, n_tasks) for task in range(n_tasks)]
    origin_of_task = origins(source.train_x.shape, torch.tensor(angles, dtype=torch.float64)).to(device)
    transforms = [partial(rearrange, origin=origin) for origin in origin_of_task]
    return domain_incremental(
        "mnist-rotations", source, Augment(), transforms, config, device, {"angles": angles},
        config.benchmark.samples_per_task,
    )  # fmt: skip


def draw(seed: int, task: int, n_tasks: int) -> float:
    """The task's angle in degrees, counter-clockwise: uniform in its bin."""
    generator = seeding.generator(seed, "transforms", task)
    return 180 / n_tasks * (task + torch.rand((), generator=generator, dtype=torch.float64).item())
