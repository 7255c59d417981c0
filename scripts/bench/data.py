"""The data path: augmented images per second, against torchvision's PIL transforms in a DataLoader.

Part `data` of `python -m scripts.bench`.
"""

import time
from collections.abc import Iterable

import torch

from engram.datasets.augment import Augment
from engram.datasets.sources import Source
from engram.datasets.streams import class_incremental
from engram.scripts.bench.buffer import CIFAR, pil_transform
from engram.scripts.bench.timing import Figure, alternate, random_source
from engram.utils.config.config import resolve


def data_path() -> list[Figure]:
    """Images/s of augmented CIFAR batches: ours against torchvision's PIL transforms in a DataLoader."""
    source = random_source(10_000, 10, (3, 32, 32))
    config = resolve([("bench", {"model": "sgd", "dataset": "seq-cifar10", "n_tasks": 1})])
    benchmark = class_incremental("bench", source, CIFAR, config, "cpu")
    n, figures = len(source.train_y), []
    for workers in (0, 2):
        loader = pil_loader(source, workers, n, 32, CIFAR)
        ours, theirs, ratio = alternate(
            lambda: seconds_to_drain(benchmark.batches(benchmark.tasks[0], 0, 32)),
            lambda loader=loader: seconds_to_drain(loader),
            rounds=3,
        )
        text = (
            f"data path, CIFAR crop + flip + normalise, batch 32: {1 / ratio:.1f}x the images/s of a "
            f"torchvision-PIL DataLoader with {workers} workers ({n / ours:,.0f} against {n / theirs:,.0f})"
        )
        numbers = {"ratio": ratio, "images_per_s": n / ours, "their_images_per_s": n / theirs}
        figures.append(Figure(f"data / DataLoader, {workers} workers", text, numbers))
    return figures


def seconds_to_drain(batches: Iterable) -> float:
    """Time to produce every batch."""
    started = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - started


def pil_loader(
    source: Source, workers: int, n: int, batch_size: int, augment: Augment
) -> torch.utils.data.DataLoader:
    """The usual data path over `n` images: PIL image, transforms, tensor, one sample at a time."""
    change = pil_transform(augment, source.train_x.shape[-1])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            return change(source.train_x[i]), source.train_y[i]

    return torch.utils.data.DataLoader(Images(), batch_size=batch_size, shuffle=True, num_workers=workers)
