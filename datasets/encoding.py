"""Encoding: the features of an encoder that never changes take the place of a stream's images.

Each image is encoded once ever: features lie under DATA_DIR/features/, in a folder named after a hash of the
encoder's weights, how it sees images, and the images themselves (`utils/feature_cache.py`). So runs, seeds,
class orders and methods share them.

Features are of un-augmented images. Besides, `--cache_views K` keeps features of K augmented views of each
training image, of which a visit draws one. Views are drawn from generators that no seed of a run changes, so
that runs share them; which view a visit sees depends on the run's seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engram.datasets import images
from engram.datasets.augment import Standardised
from engram.datasets.benchmark import Benchmark
from engram.datasets.lazy_images import identity
from engram.utils import feature_cache, seeding

HASHED = 1000  # images whose bytes are hashed at once
VERSION = 1  # raise it when the same weights and images get other features


def reason_against(benchmark: Benchmark, takes_steps: bool) -> str:
    """Why features cannot take the images' place, or an empty string.

    takes_steps: whether a method trains on augmented images, and no views of them are kept.
    """
    if len(benchmark.input_shape) != 3:
        return "the samples are no images"
    if any(task.transform is not identity for task in benchmark.tasks):
        return "every task changes the images"
    if takes_steps and benchmark.augment.draws:
        return (
            "training images are augmented at random; --augment none leaves them as they are, --cache_views "
            "K keeps K views of each"
        )
    return ""


@dataclass(frozen=True)
class Encoder:
    """An encoder that never changes.

    name: of its folder. settings: what the features depend on besides `weights` and images: flags, precision.
    encode: (n, C, H, W) float32 images as the network sees them → (n, dim) features.
    """

    name: str
    settings: str
    weights: Sequence[Tensor]
    dim: int
    encode: Callable[[Tensor], Tensor]


class DrawnViews(Standardised):
    """For samples (N, 1 + K, D): the features of an image and of K views of it; a visit draws a view."""

    @property
    def draws(self) -> bool:
        """A visit's features are drawn."""
        return True

    def shape_of(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one view's features, (D,)."""
        return stored[1:]

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """(N, 1 + K, D) → (N, D), a view drawn for each sample."""
        n, n_stored, dim = raw.shape
        views = torch.randint(1, n_stored, (n, 1, 1), generator=generator, device=raw.device)
        return raw.gather(1, views.expand(n, 1, dim)).squeeze(1)

    def normalise(self, raw: Tensor) -> Tensor:
        """(N, 1 + K, D) → (N, D), the features of the un-augmented images."""
        return raw[:, 0].clone()


def replace_images(benchmark: Benchmark, encoder: Encoder, data_dir: Path, n_views: int = 0) -> None:
    """Put features (N, dim) in the place of the benchmark's images, read from the cache where they are.

    n_views: of the training images as many augmented views are kept besides, (N, 1 + n_views, dim).
    """
    augment, parent = benchmark.augment, images.cache_folder(data_dir, "features")
    seen_as = f"version {VERSION}, {encoder.settings}, mean {augment.mean}, deviation {augment.std}"
    if augment.side:
        seen_as += f", side {augment.side}, cut from {augment.resize or augment.side}"
    weights_key = feature_cache.key_of(seen_as, encoder.weights)
    drawn_as = f"{augment.crop_padding} {augment.flip} {augment.crop_scale} {benchmark.device.type}"

    def features(split: str, view: int = 0) -> Tensor:
        raw = benchmark.samples[split]
        shape, drawn = tuple(raw.shape), f" view {view} {drawn_as}" if view else ""
        key = feature_cache.key_of(f"{weights_key} {shape}{drawn}", raw.split(HASHED))
        folder = parent and parent / f"{encoder.name}-{key}"

        def encode(rows: slice) -> Tensor:
            block = raw[rows].to(benchmark.device)
            if not view:
                return encoder.encode(augment.normalise(block))
            generator = seeding.generator(0, "views", view, rows.start, device=benchmark.device)
            return encoder.encode(augment(block, generator))

        what = f"view {view} of {n_views}, {split} images" if view else f"{split} images"
        return feature_cache.read_or_encode(folder, len(raw), encoder.dim, encode, f"encoding {what}")

    train_x, test_x = features("train"), features("test")
    location = f"in {parent}" if parent else f"by each run anew, as {data_dir} cannot be written"
    benchmark.notes.append(f"features: {encoder.dim} for each image, encoded once, {location}")
    if not n_views:
        benchmark.hold(train_x, test_x, Standardised())
        return
    views = [features("train", view) for view in range(1, n_views + 1)]
    benchmark.hold(torch.stack([train_x, *views], 1), test_x.unsqueeze(1), DrawnViews())
    benchmark.notes.append(f"features: training draws one of {n_views} augmented views at each visit")
