"""Split image folder: your own images, split by class (see --image_dir).

Folder: images in `train/<class>/` and `test/<class>/`, or `train.csv` and `test.csv` with columns
`path,label` (paths relative to the folder), which also fix the order of the samples. Training settings of
seq-cifar10; crop padding is an eighth of the image's side. Pixels are scaled to [-1, 1] (mean and
deviation 0.5), whatever the images.

Images are `.jpg`, `.jpeg`, `.png`, `.bmp`, `.gif`, `.pgm`, `.ppm`, `.tif`, `.tiff` or `.webp`, in upper or
lower case; what else lies in the folders is skipped, counted and said. All become 8-bit RGB: grey is
repeated, 16 bits keep the upper 8, transparent parts are composited on white, EXIF orientation is applied,
CMYK is converted without a colour profile. Animations, several pages, 32-bit and floating-point pixels are
refused.
"""

from dataclasses import dataclass

import torch

from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.image_files import MAX_SIDE
from engram.datasets.storage import Storage
from engram.datasets.streams import class_incremental
from engram.utils.config.config import Config
from engram.utils.config.options import OptionSet, option

DEFAULTS = {
    "n_tasks": 5, "n_epochs": 50, "batch_size": 32, "lr": 0.1, "backbone": "resnet18",
    "lr_scheduler": "multistep", "lr_milestones": (35, 45),
}  # fmt: skip


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the image folder benchmark."""

    image_dir: str | None = option(
        None, "folder with train/<class>/ and test/<class>/, or train.csv and test.csv (default: --data_dir)"
    )
    img_size: int | None = option(
        None, "bring every image to this side: shorter side scaled, centre cropped (default: as they are)",
        ge=8, le=MAX_SIDE,
    )  # fmt: skip


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    options, data_dir = config.benchmark, config.run.data_dir
    storage = Storage.configured(config, device)
    source = sources.imagefolder(options.image_dir or data_dir, options.img_size, data_dir, storage)
    return class_incremental("seq-imagefolder", source, augmentation(source), config, device)


def augmentation(source: sources.Source) -> Augment:
    """Crop, flip and scaling for images of whatever size."""
    padding = min(source.train_x.shape[2:]) // 8
    return Augment(mean=(0.5,) * 3, std=(0.5,) * 3, crop_padding=padding, flip=True)
