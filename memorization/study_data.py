"""Study data: the examples whose memorization is measured, and the test set, on the device."""

import dataclasses
import json
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engram.datasets import arrays, sources, user_images
from engram.datasets.augment import Augment, Windows, cut_windows, draw_windows, without_draws
from engram.datasets.storage import Storage
from engram.memorization import subsets
from engram.memorization.settings import DataOptions
from engram.utils import seeding
from engram.utils.config import registry
from engram.utils.config.flags import own_names
from engram.utils.config.options import Pixels
from engram.utils.scores import in_class_range, order_hash, parse_range
from engram.utils.terminal import say_once

BENCHMARKS = {"tinyimagenet": "seq-tinyimg"}  # the benchmark that defines the augmentation; else seq-NAME


@dataclass(frozen=True)
class StudyData:
    """N training and M test examples.

    images: (N, C, H, W) uint8; of a user's own arrays also vectors (N, D) and standardised float32. labels:
    (N,). index: (N,) positions in the source's training set. With a data fraction the examples stay in the
    order in which they were drawn, as the paper's vectors do.
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
        """The device that holds the examples."""
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
        row_of = {position: row for row, position in enumerate(self.index.tolist())}
        rows = torch.tensor([row_of[position] for position in positions.tolist()], device=self.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=positions)

    def identity(self) -> dict[str, str | int | np.ndarray]:
        """The arrays of a score file that tie it to its data set."""
        return {
            "dataset": self.name, "order_hash": self.order_hash, "n_train": self.n_source,
            "index": self.index, "labels": self.labels.cpu().numpy(),
        }  # fmt: skip


def load(options: DataOptions, device: torch.device, pixels: Pixels | None = None) -> StudyData:
    """The examples that the options ask for, on the device.

    pixels: mean and deviation that pre-trained weights expect (default: the data set's).
    """
    source, augment = _source(options)
    if parent_process() is None:  # the processes that it starts read the same
        for note in source.notes:
            say_once(f"data:    {note}")
    if options.augment == "none":
        augment = replace(augment, crop_padding=0, flip=False)
    if pixels:
        augment = replace(augment, mean=pixels[0], std=pixels[1])
    labels = source.train_y.numpy()
    first, last = parse_range(options.class_range, len(source.classes))
    index = subsets.part(labels, (first, last), options.dataset_size)
    test_rows = torch.from_numpy(in_class_range(source.test_y.numpy(), first, last))
    rows = torch.from_numpy(index)
    return StudyData(
        name=options.dataset,
        images=source.train_x[rows].to(device),
        labels=source.train_y[rows].to(device),
        index=index,
        test_images=source.test_x[test_rows].to(device),
        test_labels=source.test_y[test_rows].to(device),
        n_classes=last,
        class_names=source.classes,
        augment=augment,
        n_source=len(labels),
        order_hash=order_hash(source.train_y),
    )


def labels(options: DataOptions) -> np.ndarray:
    """(N,) labels of the whole training set, in order."""
    train_labels: np.ndarray = _source(options)[0].train_y.numpy()
    return train_labels


def options_of(settings: str, data_dir: str) -> DataOptions:
    """The data set that the settings (JSON) of a score file name."""
    fields = {field.name: field for field in dataclasses.fields(DataOptions)}
    values = own_names(json.loads(settings), fields) | {"data_dir": data_dir}
    return DataOptions(**{name: value for name, value in values.items() if name in fields})


def _source(options: DataOptions) -> tuple[sources.Source, Augment]:
    name = options.dataset
    if name == "digits":
        return sources.digits(), Augment()
    if name == "imagefolder":
        listed = user_images.find_images(
            options.image_dir, options.data_dir, options.test_share, options.split_seed
        )
        source = user_images.read(listed, options.img_size, Storage(data_dir=options.data_dir))
        return source, registry.load("datasets", "seq-imagefolder").augmentation(source)
    if name == "arrays":
        source, _ = arrays.read(Path(str(options.arrays)).expanduser(), options.array_layout, held_out=False)
        return source, without_draws(source.train_x)
    source = getattr(sources, name)(options.data_dir)
    benchmark = registry.load("datasets", BENCHMARKS.get(name, f"seq-{name}"))
    return source, getattr(benchmark, "AUGMENT", Augment())
