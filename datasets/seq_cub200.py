"""Split CUB-200: 10 tasks of 20 classes, photographs of birds.

Data: Wah et al. 2011, "The Caltech-UCSD Birds-200-2011 Dataset". Folder: `DATA_DIR/cub200/train/<class>/`
and `test/<class>/`, or `train.csv` and `test.csv` with columns `path,label`. The official split has 5,994
and 5,794 images; the folder of PILOT and RanPAC 9,430 and 2,358: `split_hash` in results.json tells them
apart.

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
    "seq-cub200", "cub200", 200, "CUB-200-2011 (www.vision.caltech.edu/datasets/cub_200_2011)"
)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return class_incremental("seq-cub200", IMAGES.source(config), AUGMENT, config, device)
