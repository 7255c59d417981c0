"""Split CIFAR-100: 10 tasks of 10 classes, 32x32 colour.

Data: Krizhevsky 2009. Settings of the memorization paper: 50 epochs a task, rate times 0.1 after 35 and 45,
classes permuted by the seed, crop with padding 4 and flip. Mean and deviation of the training set.
"""

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {
    "n_tasks": 10, "n_epochs": 50, "batch_size": 32, "lr": 0.1, "backbone": "resnet18",
    "permute_classes": True, "lr_scheduler": "multistep", "lr_milestones": (35, 45),
}  # fmt: skip
AUGMENT = Augment(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), crop_padding=4, flip=True)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = sources.cifar100(config.run.data_dir)
    return class_incremental("seq-cifar100", source, AUGMENT, config, device)
