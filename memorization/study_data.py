"""Pool: the examples of a study, on the device: those whose memorization is measured, and the test set."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engram.datasets import sources
from engram.datasets.augment import IMAGENET, Augment, Windows, cut_windows, draw_windows
from engram.memorization import subsets
from engram.memorization.cli import Options
from engram.memorization.settings import DataOptions
from engram.utils import seeding
from engram.utils.config import registry
from engram.utils.scores import order_hash

BENCHMARKS = {"tinyimagenet": "seq-tinyimg"}  # where the augmentation is defined; else seq-NAME


@dataclass(frozen=True)
class StudyData:
    """N training and M test examples.

    images: (N, C, H, W) uint8. labels: (N,). index: (N,) positions in the source's training set. With a
    data fraction the examples stay in the order in which they were drawn, as the paper's vectors do.
    """

    name: str
    images: Tensor
    labels: Tensor
    index: np.ndarray
    test_images: Tensor
    test_labels: Tensor
    n_classes: int
    class_names: tuple[str, ...]
    augment: Augment
    n_source: int
    order_hash: str

    @property
    def device(self) -> torch.device:
        """Where the examples are."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.labels)

    def draws(self, n: int, seed: int, repeat: int, *keys: int) -> Windows:
        """The augmentations of `n` examples in turn, for one network and epoch."""
        generator = seeding.generator(seed, "augmentation", repeat, *keys)
        windows = draw_windows(
            n, self.augment.crop_padding, self.augment.flip, generator, torch.device("cpu")
        )
        return Windows(*(field.to(self.device) for field in windows))

    def batch(self, rows: Tensor, windows: Windows | None) -> Tensor:
        """Augmented, normalised images of `rows` (K, n): (K, n, C, H, W) float32."""
        raw = self.images.index_select(0, rows.flatten())
        if windows is not None:
            flat = Windows(*(field.flatten() for field in windows))
            raw = cut_windows(raw, self.augment.crop_padding, self.augment.flip, flat)
        return self.augment.normalise(raw).view(*rows.shape, *raw.shape[1:])

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return bool(self.augment.crop_padding or self.augment.flip)

    def at(self, positions: np.ndarray) -> "StudyData":
        """The training examples at these positions in the source, in their order."""
        place = {position: row for row, position in enumerate(self.index.tolist())}
        rows = torch.tensor([place[position] for position in positions.tolist()], device=self.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=positions)


def load(options: Options, device: torch.device) -> StudyData:
    """The examples that the flags ask for, normalised as pre-trained weights expect where there are any."""
    data = options.data
    source, augment = _source(data)
    if getattr(options.architecture, "pretrained", False):
        augment = replace(augment, mean=IMAGENET[0], std=IMAGENET[1])
    labels = source.train_y.numpy()
    first, last = subsets.parse_range(data.class_range, len(source.classes))
    index = subsets.in_class_range(labels, first, last)
    index = index[subsets.fraction(labels[index], data.dataset_size)]
    tested = torch.from_numpy(subsets.in_class_range(source.test_y.numpy(), first, last))
    rows = torch.from_numpy(index)
    return StudyData(
        name=data.dataset_name,
        images=source.train_x[rows].to(device),
        labels=source.train_y[rows].to(device),
        index=index,
        test_images=source.test_x[tested].to(device),
        test_labels=source.test_y[tested].to(device),
        n_classes=last,
        class_names=source.classes,
        augment=augment,
        n_source=len(labels),
        order_hash=order_hash(source.train_y),
    )


def _source(data: DataOptions) -> tuple[sources.Source, Augment]:
    name = data.dataset_name
    if name == "digits":
        return sources.digits(), Augment()
    if name == "imagefolder":
        folder = data.image_dir or data.data_dir
        source = sources.imagefolder(folder, data.img_size, data.data_dir)
        return source, registry.load("datasets", "seq-imagefolder").augmentation(source)
    source = getattr(sources, name)(data.data_dir)
    benchmark = registry.load("datasets", BENCHMARKS.get(name, f"seq-{name}"))
    return source, getattr(benchmark, "AUGMENT", Augment())
