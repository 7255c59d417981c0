"""Split Tiny-ImageNet: 20 tasks of 10 classes, 64x64 colour.

Data: Stanford CS231n; its validation set is the test set. Classes are numbered in the order of its
`wnids.txt`, as in mammoth, DER and the memorization paper (in an image folder `tinyimagenet/`
alphabetically). Settings of the memorization paper: 20 tasks (mammoth and DER take 10: `--n_tasks 10`), 50
epochs a task, rate times 0.1 after 35 and 45, classes permuted by the seed, crop with padding 4 and flip.
Mean and deviation of the training set.
"""

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.storage import Storage
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {
    "n_tasks": 20, "n_epochs": 50, "batch_size": 32, "lr": 0.1, "backbone": "resnet18",
    "permute_classes": True, "lr_scheduler": "multistep", "lr_milestones": (35, 45),
}  # fmt: skip
AUGMENT = Augment(mean=(0.4802, 0.4480, 0.3975), std=(0.2770, 0.2691, 0.2821), crop_padding=4, flip=True)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = sources.tinyimagenet(config.run.data_dir, Storage.configured(config, device))
    return class_incremental("seq-tinyimg", source, AUGMENT, config, device)
