"""Split CIFAR-10: 5 tasks of 2 classes, 32x32 colour.

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
    "n_tasks": 5, "n_epochs": 50, "batch_size": 32, "lr": 0.1, "backbone": "resnet18",
    "permute_classes": True, "lr_scheduler": "multistep", "lr_milestones": (35, 45),
}  # fmt: skip
AUGMENT = Augment(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2615), crop_padding=4, flip=True)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    source = sources.cifar10(config.run.data_dir)
    return class_incremental("seq-cifar10", source, AUGMENT, config, device)
