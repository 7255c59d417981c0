"""CORe50: 50 objects in 8 sessions of training (domain-IL).

Data: Lomonaco & Maltoni 2017, "CORe50: a New Dataset and Benchmark for Continuous Object Recognition"
(arXiv 1705.03550). Folder: `DATA_DIR/core50/train/<session>/<object>/` of the sessions s1, s2, s4, s5, s6,
s8, s9 and s11, and `test/<object>/` of s3, s7 and s10, or `train.csv` (`path,label,domain`) and `test.csv`
(`path,label`). The test sessions belong to no task: each task is tested on an eighth of their images, so
that the average accuracy after the last one is the accuracy on all of them. Tasks come in the order of
their names.

Settings of APER and RanPAC (LAMDA-PILOT): ViT-B/16 of ImageNet-21k, boxes of 5 to 100 % of the image and
flips in training, shorter side 256 and the centre of 224 in evaluation. They leave pixels in [0, 1], as
`--pixel_mean 0 --pixel_std 1` does; here these are scaled as the weights were trained.
"""

import torch

from engram.datasets.benchmark import Benchmark
from engram.datasets.named_images import NamedImages
from engram.utils.config.config import Config

DEFAULTS = {
    "n_tasks": 8,
    "n_epochs": 20, "batch_size": 48, "lr": 0.01, "lr_scheduler": "cosine", "optim_mom": 0.9,
    "optim_wd": 5e-4, "augment": "random_resized_crop", "crop_scale": (0.05, 1.0), "img_size": 224,
    "test_resize": 256, "backbone": "timm:vit_base_patch16_224.augreg_in21k", "pretrained": "default",
}  # fmt: skip
IMAGES = NamedImages("seq-core50", "core50", 50, "CORe50 (vlomonaco.github.io/core50, core50_128x128)")


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    return IMAGES.of_domains(config, device)
