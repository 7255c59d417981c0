"""Split MIT-67: 10 tasks of 6 or 7 classes, photographs of rooms.

Data: Quattoni & Torralba 2009, "Recognizing Indoor Scenes". Folder: `DATA_DIR/mit67/train/<class>/` and
`test/<class>/` (TrainImages.txt and TestImages.txt: 80 and 20 a class), or `train.csv` and `test.csv` with
columns `path,label`. `split_hash` in results.json stands for the split.

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
IMAGES = NamedImages("seq-mit67", "mit67", 67, "MIT Indoor Scenes (web.mit.edu/torralba/www/indoor.html)")


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return class_incremental("seq-mit67", IMAGES.source(config), AUGMENT, config, device)
