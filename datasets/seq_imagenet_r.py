"""Split ImageNet-R: 10 tasks of 20 classes, renditions of ImageNet's classes.

Data: Hendrycks et al. 2021, "The Many Faces of Robustness" (arXiv 2006.16241), 30,000 images without an
official split. Folder: `DATA_DIR/imagenet-r/` with `train.csv` and `test.csv`, columns `path,label`, or
with `train/<class>/` and `test/<class>/`. Four splits are in use (CODA-Prompt's lists, PILOT's folder,
InfLoRA's and L2P's draws of 80 %), 1 to 2 points apart: `split_hash` in results.json tells them apart.

Settings of APER and RanPAC (LAMDA-PILOT): ViT-B/16 of ImageNet-21k, boxes of 5 to 100 % of the image and
flips in training, shorter side 256 and the centre of 224 in evaluation. They leave pixels in [0, 1], as
`--pixel_mean 0 --pixel_std 1` does; here these are scaled as the weights were trained.
"""

import torch

from engram.datasets.benchmark import Benchmark
from engram.datasets.named_images import AUGMENT, NamedImages
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config

DEFAULTS = {
    "n_tasks": 10, "permute_classes": True,
    "n_epochs": 20, "batch_size": 48, "lr": 0.01, "lr_scheduler": "cosine", "optim_mom": 0.9,
    "optim_wd": 5e-4, "augment": "random_resized_crop", "crop_scale": (0.05, 1.0), "img_size": 224,
    "test_resize": 256, "backbone": "timm:vit_base_patch16_224.augreg_in21k", "pretrained": "default",
}  # fmt: skip
IMAGES = NamedImages("seq-imagenet-r", "imagenet-r", 200, "ImageNet-R (github.com/hendrycks/imagenet-r)")


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return class_incremental("seq-imagenet-r", IMAGES.source(config), AUGMENT, config, device)
