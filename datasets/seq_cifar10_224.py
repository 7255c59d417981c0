"""Split CIFAR-10 at 224x224: 5 tasks of 2 classes for pre-trained encoders.

Data: Krizhevsky 2009. Read as by seq-cifar10; images stay 32x32 in memory and are enlarged a batch at a
time.

Settings of APER and RanPAC (LAMDA-PILOT): ViT-B/16 of ImageNet-21k, boxes of 5 to 100 % of the image and
flips in training, the whole image enlarged to 224 in evaluation. They leave pixels in [0, 1], as
`--pixel_mean 0 --pixel_std 1` does; here these are scaled as the weights were trained.
"""

import torch

from engram.datasets import sources
from engram.datasets.benchmark import Benchmark
from engram.datasets.named_images import AUGMENT
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {
    "n_tasks": 5, "permute_classes": True,
    "n_epochs": 20, "batch_size": 48, "lr": 0.01, "lr_scheduler": "cosine", "optim_mom": 0.9,
    "optim_wd": 5e-4, "augment": "random_resized_crop", "crop_scale": (0.05, 1.0), "img_size": 224,
    "backbone": "timm:vit_base_patch16_224.augreg_in21k", "pretrained": "default",
}  # fmt: skip


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return class_incremental("seq-cifar10-224", sources.cifar10(config.run.data_dir), AUGMENT, config, device)
