"""Named images: published benchmarks whose images lie in a folder of the user's, below --data_dir.

    DATA_DIR/FOLDER/train/<class>/*.jpg, test/<class>/*.jpg     or train.csv and test.csv with path,label
    DATA_DIR/FOLDER/train/<domain>/<class>/*.jpg, ...           or with path,label,domain

The tables decide the split where a set has no official one; `split_hash` in results.json says which it was.
Images are kept as squares of --test_resize (else of --img_size) pixels, decoded once; random boxes are cut
from these squares, while the papers cut them from whole images.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engram.datasets import user_images
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.given_tasks import check_count, given_tasks
from engram.datasets.sources import Source
from engram.datasets.storage import Storage
from engram.utils.config.config import Config
from engram.utils.errors import DataError

AUGMENT = Augment(mean=(0.5,) * 3, std=(0.5,) * 3)  # of random weights; pre-trained ones know their own


@dataclass(frozen=True)
class NamedImages:
    """A published set of images.

    benchmark: its name here. folder: below --data_dir. n_classes: that it must have. origin: where the images
    come from, for the line that says they are missing.
    """

    benchmark: str
    folder: str
    n_classes: int
    origin: str

    def source(self, config: Config) -> Source:
        """The images of a class-IL benchmark; raises `DataError`."""
        root, listed = self._listed(config, "<class>/")
        if listed.domains:
            raise DataError(f"{root}: holds domains; {self.benchmark} has classes in train/ and test/")
        return self._read(listed, config)

    def of_domains(self, config: Config, device: torch.device) -> Benchmark:
        """The stream of a domain-IL benchmark, a domain for each task; raises `DataError`."""
        root, listed = self._listed(config, "<domain>/<class>/")
        if not listed.domains:
            raise DataError(
                f"{root}: has no domains; {self.benchmark} needs train/<domain>/<class>/, or a column domain "
                "in train.csv"
            )
        check_count(config.stream.n_tasks, len(listed.domains.names), "domain", root)
        source, domains = self._read(listed, config), listed.domains
        task_of: tuple[Tensor, Tensor] = (domains.train, domains.test)
        return given_tasks(self.benchmark, source, task_of, AUGMENT, config, device, domains=True)

    def _listed(self, config: Config, layout: str) -> tuple[Path, user_images.UserImages]:
        """The set's folder and the images in it; layout: of the folders in train/."""
        root = Path(config.run.data_dir).expanduser() / self.folder
        if not root.is_dir():
            raise DataError(
                f"{self.benchmark}: {root}: no such folder; get {self.origin} and put the images there in "
                f"train/{layout} and test/{layout}, or with train.csv and test.csv (--help --dataset "
                f"{self.benchmark} says which)"
            )
        return root, user_images.list_split(root)

    def _read(self, listed: user_images.UserImages, config: Config) -> Source:
        """The decoded images, after a check that no class is missing."""
        n_classes = len(set(listed.train.labels))
        if n_classes != self.n_classes:
            raise DataError(
                f"{listed.root}: {n_classes} classes, {self.benchmark} has {self.n_classes}; another set of "
                "images is seq-imagefolder --image_dir"
            )
        side = config.stream.test_resize or config.stream.img_size
        return user_images.read(listed, side, Storage(config.run.images, "cpu", config.run.data_dir))
