"""Split ImageNet-A: 10 tasks of 20 classes, photographs that networks get wrong.

Data: Hendrycks et al. 2021, "Natural Adversarial Examples" (arXiv 1907.07174), 7,500 images without an
official split. Folder: `DATA_DIR/imagenet-a/` with `train.csv` and `test.csv`, columns `path,label`, or
with `train/<class>/` and `test/<class>/` (PILOT's folder: 5,981 and 1,519): `split_hash` in results.json
tells splits apart.

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
IMAGES = NamedImages(
    "seq-imagenet-a", "imagenet-a", 200, "ImageNet-A (github.com/hendrycks/natural-adv-examples)"
)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return class_incremental("seq-imagenet-a", IMAGES.source(config), AUGMENT, config, device)
