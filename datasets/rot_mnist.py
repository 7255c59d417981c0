"""Rotated MNIST: 20 tasks of all ten digits, each turned by its own angle (domain-IL).

Source: Lopez-Paz & Ranzato 2017 (GEM). Angles are uniform in [0, 180) degrees, as in mammoth (GEM draws one
in each of 20 equal bins); pixels are those of `PIL.Image.rotate` (nearest neighbour, black corners), which
both use. Batches of 128, one epoch: mammoth.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets import sources
from datasets.augment import Augment
from datasets.benchmark import Benchmark, domain_incremental
from utils import seeding

DEFAULTS = {"n_tasks": 20, "n_epochs": 1, "batch_size": 128, "lr": 0.1, "backbone": "mlp"}


def build(config, device) -> Benchmark:
    """The stream for a resolved configuration, on `device`."""
    source = sources.mnist(config.run.data_dir)
    angles = [draw(config.run.seed, task) for task in range(config.stream.n_tasks)]
    size = tuple(source.train_x.shape[2:])
    changes = [partial(rearrange, origin=origin(size, angle).to(device)) for angle in angles]
    return domain_incremental("rot-mnist", source, Augment(), changes, config, device, {"angles": angles})


def draw(seed: int, task: int) -> float:
    """The task's angle in degrees, counter-clockwise."""
    generator = seeding.generator(seed, "transforms", task)
    return 180 * torch.rand((), generator=generator, dtype=torch.float64).item()


def origin(size: tuple[int, int], angle: float) -> Tensor:
    """Where each pixel of a turned (H, W) image comes from, (H·W,): counted from 1, 0 is outside.

    Pillow turns an image of pixel numbers: with nearest neighbours nothing else needs to be known.
    """
    numbers = np.arange(1, size[0] * size[1] + 1, dtype=np.int32).reshape(size)
    turned = Image.fromarray(numbers).rotate(angle, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(turned, dtype=np.int64)).flatten()


def rearrange(raw: Tensor, origin: Tensor) -> Tensor:
    """(N, 1, H, W) uint8 → the same images with every pixel taken from where `origin` says."""
    return F.pad(raw.flatten(1), (1, 0)).gather(1, origin.expand(len(raw), -1)).view_as(raw)
