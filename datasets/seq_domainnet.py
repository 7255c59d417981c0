"""DomainNet: 345 classes in 6 domains, from photographs to sketches (domain-IL).

Data: Peng et al. 2019, "Moment Matching for Multi-Source Domain Adaptation" (arXiv 1812.01754). Folder:
`DATA_DIR/domainnet/train/<domain>/<class>/` and `test/<domain>/<class>/`, or `train.csv` and `test.csv`
with columns `path,label,domain` made of the official lists. Tasks come in the order of the domains' names:
clipart, infograph, painting, quickdraw, real, sketch. `split_hash` in results.json stands for the split.

Settings of APER and RanPAC (LAMDA-PILOT): ViT-B/16 of ImageNet-21k, boxes of 5 to 100 % of the image and
flips in training, shorter side 256 and the centre of 224 in evaluation. They leave pixels in [0, 1], as
`--pixel_mean 0 --pixel_std 1` does; here these are scaled as the weights were trained.
"""

import torch

from engram.datasets.benchmark import Benchmark
from engram.datasets.named_images import NamedImages
from engram.utils.config.config import Config

DEFAULTS = {
    "n_tasks": 6,
    "n_epochs": 20, "batch_size": 48, "lr": 0.01, "lr_scheduler": "cosine", "optim_mom": 0.9,
    "optim_wd": 5e-4, "augment": "random_resized_crop", "crop_scale": (0.05, 1.0), "img_size": 224,
    "test_resize": 256, "backbone": "timm:vit_base_patch16_224.augreg_in21k", "pretrained": "default",
}  # fmt: skip
IMAGES = NamedImages("seq-domainnet", "domainnet", 345, "DomainNet (ai.bu.edu/M3SDA, the cleaned version)")


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return IMAGES.of_domains(config, device)
