"""Rotated MNIST: 20 tasks of all ten digits, each turned by its own angle (domain-IL).

Source: Lopez-Paz & Ranzato 2017 (GEM). Angles are uniform in [0, 180) degrees, as in mammoth (GEM draws one
in each of 20 equal bins); pixels are those of `PIL.Image.rotate` (nearest neighbour, black corners), which
both use. Batches of 128, one epoch: mammoth.
"""

from functools import partial

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.rotation import origins, rearrange
from engram.datasets.streams import domain_incremental
from engram.utils import seeding
from engram.utils.config.config import Config

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 128, "lr": 0.1, "backbone": "mlp"}


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = sources.mnist(config.run.data_dir)
    angles = [draw(config.run.seed, task) for task in range(config.stream.n_tasks)]
    origin_of_task = origins(source.train_x.shape, torch.tensor(angles, dtype=torch.float64)).to(device)
    transforms = [partial(rearrange, origin=origin) for origin in origin_of_task]
    return domain_incremental("rot-mnist", source, Augment(), transforms, config, device, {"angles": angles})


def draw(seed: int, task: int) -> float:
    """The task's angle in degrees, counter-clockwise: uniform in [0, 180)."""
    generator = seeding.generator(seed, "transforms", task)
    return 180 * torch.rand((), generator=generator, dtype=torch.float64).item()
