"""Write a new benchmark's skeleton: datasets/NAME.py and its test.

    python scripts/new_dataset.py my_data
    python -m pytest tests/unit/test_my_data.py
    python main.py --model er --dataset my-data

The skeleton is a small benchmark that works, bars in four directions in two tasks; read your own images
in `read`.
"""

import sys

from engram.scripts.skeletons import Skeleton
from engram.utils.door import guarded

DATASET = '''"""TITLE: one line for --help, at most 100 characters, that ends with a period.

Data: AUTHORS YEAR, "TITLE OF THE PAPER" (arXiv NUMBER).
"""

import numpy as np
import torch
from torch import Tensor

from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.sources import Source
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

# The flags that belong to the benchmark; a user's own win over them.
DEFAULTS = {"n_tasks": 2, "n_epochs": 2, "batch_size": 10, "lr": 0.05, "backbone": "mlp"}
CLASSES = ("horizontal", "vertical", "falling", "rising")


def read(n_per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 12, 12) uint8 and labels (N,) int64: a bright bar on noise in each image."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(CLASSES)), n_per_class)
    images = rng.integers(0, 100, (len(labels), 12, 12), dtype=np.uint8)
    along = np.arange(12)
    for image, label in zip(images, labels, strict=True):
        across = np.full(12, rng.integers(2, 10))
        diagonal = np.clip(along + rng.integers(-1, 2), 0, 11)
        rows = (across, along, along, along)[label]
        columns = (along, across, diagonal, diagonal[::-1])[label]
        image[rows, columns] = 255
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = Source("DASHED", *read(100, seed=0), *read(25, seed=1), CLASSES)
    return class_incremental("DASHED", source, Augment(), config, device)
'''

TEST = '''"""The stream of TITLE."""

import torch

from engram.utils.config import registry
from engram.utils.config.config import resolve


def test_the_classes_are_split_into_tasks():
    config = resolve([("test", {"model": "sgd", "dataset": "DASHED", "device": "cpu"})])
    stream = registry.load("datasets", "DASHED").build(config, torch.device("cpu"))
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3)]
    assert stream.input_shape == (1, 12, 12) and stream.n_train == 400
    batch = next(stream.batches(stream.tasks[1], 0, 8))
    assert set(batch.y.tolist()) <= {2, 3}
'''

SKELETON = Skeleton(
    "datasets",
    {"datasets/NAME.py": DATASET, "tests/unit/test_NAME.py": TEST},
    "python -m pytest tests/unit/test_NAME.py; python scripts/check_plugin.py datasets/NAME.py",
)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Write the skeleton that the command line names; returns the exit code."""
    return SKELETON.run(SKELETON.parser(__doc__).parse_args(argv).name)


if __name__ == "__main__":
    sys.exit(main())
