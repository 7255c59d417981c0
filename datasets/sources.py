"""Sources: get, verify and decode a data set once, into uint8 tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """A decoded data set.

    train_x, test_x: (N, C, H, W) uint8. train_y, test_y: (N,) int64. classes: a name for each label.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Training and test labels."""
        return self.train_y, self.test_y


def digits() -> Source:
    """scikit-learn's 1,797 real 8x8 digits, split 80/20 by class with a fixed seed; no download."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=bunch.target, random_state=0)
    names = tuple(str(i) for i in range(10))
    return Source("digits", images[train], labels[train], images[test], labels[test], names)
