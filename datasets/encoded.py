"""Encoded streams: the features of an encoder that never changes take the images' place.

Each image is encoded once ever: features lie under DATA_DIR/features/, in a folder named after a hash of the
encoder's weights, how it sees images, and the images themselves (`utils/feature_cache.py`). So runs, seeds,
class orders and methods share them. Features are of un-augmented images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engram.datasets import images
from engram.datasets.augment import Standardised
from engram.datasets.benchmark import Benchmark
from engram.datasets.lazy_images import identity
from engram.utils import feature_cache

HASHED = 1000  # images whose bytes are hashed at once
VERSION = 1  # raise it when the same weights and images get other features


def reason_against(benchmark: Benchmark, takes_steps: bool) -> str:
    """Why features cannot take the images' place, or an empty string."""
    if len(benchmark.input_shape) != 3:
        return "the samples are no images"
    if any(task.transform is not identity for task in benchmark.tasks):
        return "every task changes the images"
    if takes_steps and benchmark.augment.draws:
        return "training images are augmented at random; --augment none leaves them as they are"
    return ""


@dataclass(frozen=True)
class Encoder:
    """An encoder that never changes.

    name: of its folder. settings: what the features depend on besides `weights` and images: flags, precision.
    encode: (n, C, H, W) un-augmented uint8 images → (n, dim) features.
    """

    name: str
    settings: str
    weights: Sequence[Tensor]
    dim: int
    encode: Callable[[Tensor], Tensor]


def replace_images(benchmark: Benchmark, encoder: Encoder, data_dir: Path) -> None:
    """Put features (N, dim) in the place of the benchmark's images, read from the cache where they are."""
    augment, parent = benchmark.augment, images.cache_folder(data_dir, "features")
    seen_as = f"version {VERSION}, {encoder.settings}, mean {augment.mean}, deviation {augment.std}"
    if augment.side:
        seen_as += f", side {augment.side}, cut from {augment.resize or augment.side}"
    weights_key = feature_cache.key_of(seen_as, encoder.weights)

    def features(split: str) -> Tensor:
        raw = benchmark.samples[split]
        key = feature_cache.key_of(f"{weights_key} {tuple(raw.shape)}", raw.split(HASHED))
        folder = parent and parent / f"{encoder.name}-{key}"
        return feature_cache.read_or_encode(
            folder, len(raw), encoder.dim, lambda rows: encoder.encode(raw[rows]), f"encoding {split} images"
        )

    benchmark.hold(features("train"), features("test"), Standardised())
    kept = f"in {parent}" if parent else f"by each run anew, as {data_dir} cannot be written"
    benchmark.notes.append(f"features: {encoder.dim} for each image, encoded once, {kept}")
