"""Split image folder: your own images, split by class (see --image_dir).

Folder: images in `train/<class>/` and `test/<class>/`, or `train.csv` and `test.csv` with columns
`path,label` (paths relative to the folder), which also fix the order of the samples. Or images in `<class>/`
alone, or one CSV file given as --image_dir: its column `split` says train or test; without one a share of
each class is held out as test images, the same for every --seed, and a line says so (--test_share,
--split_seed). Folders `train/<domain>/<class>/`, or a column `domain`, make each domain a task, in the order
of their names (domain-IL); test images without domains are shared out to all of them. `split_hash` in
results.json and in MLflow's tags stands for the split, whether folders or a table say it.
Training settings of seq-cifar10; crop padding is an eighth of the image's side. Pixels are scaled to [-1, 1]
(mean and deviation 0.5), whatever the images.

Images are `.jpg`, `.jpeg`, `.png`, `.bmp`, `.gif`, `.pgm`, `.ppm`, `.tif`, `.tiff` or `.webp`, in upper or
lower case; what else lies in the folders is skipped, counted and said. All become 8-bit RGB: grey is
repeated, 16 bits keep the upper 8, transparent parts are composited on white, EXIF orientation is applied,
CMYK is converted without a colour profile. Animations, several pages, 32-bit and floating-point pixels are
refused.
"""

from dataclasses import dataclass

import torch

from engram.datasets import sources, user_images
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.given_tasks import check_count, given_tasks
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
        None, "folder with train/<class>/ and test/<class>/, or train.csv and test.csv, or <class>/, or a "
        "CSV file of path,label[,split][,domain] (default: --data_dir)"
    )  # fmt: skip
    test_share: float = option(0.2, "share of each class held out if nothing says what is tested", gt=0, lt=1)
    split_seed: int = option(0, "seed of that split, which --seed does not change", ge=0)


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    assert isinstance(config.benchmark, Options)
    options, data_dir = config.benchmark, config.run.data_dir
    listed = user_images.find_images(options.image_dir, data_dir, options.test_share, options.split_seed)
    side = config.stream.test_resize or config.stream.img_size
    source = user_images.read(listed, side, Storage.configured(config, device))
    augment = augmentation(source)
    if listed.domains is None:
        return class_incremental("seq-imagefolder", source, augment, config, device)
    check_count(config.stream.n_tasks, len(listed.domains.names), "domain", listed.root)
    task_of = (listed.domains.train, listed.domains.test)
    return given_tasks("seq-imagefolder", source, task_of, augment, config, device, domains=True)


def augmentation(source: sources.Source) -> Augment:
    """Crop, flip and scaling for images of whatever size."""
    padding = min(source.train_x.shape[2:]) // 8
    return Augment(mean=(0.5,) * 3, std=(0.5,) * 3, crop_padding=padding, flip=True)
