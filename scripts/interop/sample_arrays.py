"""Write the first images of each class of a data set as arrays for `--dataset seq-arrays`.

    python scripts/interop/sample_arrays.py sample.npz mnist --train 100 --test 100 [--data_dir DIR]
    python scripts/interop/sample_arrays.py half.npz mnist fmnist --classes 0,1,2,3,4 --train 5000
    python main.py --model sgd --dataset seq-arrays --arrays sample.npz

Small studies on large encoders train and measure on so few images. Images stay bytes, and in the data set's
order. Data sets: mnist, fmnist, cifar10, cifar100; the labels of a second one follow those of the first. DIR
is main.py's --data_dir.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.datasets import sources
from engram.datasets.sources import Source
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.destinations import check_file
from engram.utils.door import guarded
from engram.utils.errors import UserError

READERS = {name: getattr(sources, name) for name in ("mnist", "fmnist", "cifar10", "cifar100")}


def first_of_each_class(y: Tensor, n: int, classes: list[int]) -> Tensor:
    """Positions of the first n samples of each of the classes among labels (N,), in ascending order."""
    positions = [(y == label).nonzero()[:n, 0] for label in classes]
    fewest = min(map(len, positions))
    if n < 1 or n > fewest:
        raise UserError(f"{n} images of a class: there are {fewest} of one")
    return torch.cat(positions).sort().values


def sample(source: Source, n_train: int, n_test: int, classes: list[int]) -> dict[str, Tensor]:
    """The arrays of a data set: its first images of each of the classes."""
    train = first_of_each_class(source.train_y, n_train, classes)
    test = first_of_each_class(source.test_y, n_test, classes)
    return {
        "train_x": source.train_x[train], "train_y": source.train_y[train],
        "test_x": source.test_x[test], "test_y": source.test_y[test],
    }  # fmt: skip


def side_by_side(samples: list[dict[str, Tensor]]) -> dict[str, NDArray[np.uint8 | np.int64]]:
    """Samples of several data sets as one; labels of each begin behind the last one's largest."""
    n_before = 0
    for arrays in samples:
        for name in ("train_y", "test_y"):
            arrays[name] = arrays[name] + n_before
        n_before = int(arrays["train_y"].max()) + 1
    return {name: torch.cat([arrays[name] for arrays in samples]).numpy() for name in samples[0]}


@guarded
def main(argv: list[str] | None = None) -> int:
    """Write the file; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the .npz file that is written")
    parser.add_argument("data_sets", choices=READERS, nargs="+")
    parser.add_argument("--train", type=int, default=100, help="training images of each class (100)")
    parser.add_argument("--test", type=int, default=100, help="test images of each class (100)")
    parser.add_argument("--classes", default="0,1,2,3,4,5,6,7,8,9", help="labels (the first ten)")
    parser.add_argument("--data_dir", default="~/.cache/engram", help="where the data sets lie")
    args = parser.parse_args(argv)
    check_bounds(args, train=COUNT, test=COUNT)
    check_file(args.file, "file", (".npz",))
    if not re.fullmatch(r"\d+(,\d+)*", args.classes):
        raise UserError(f"--classes {args.classes}: expected labels separated by commas, e.g. 0,1,2")
    classes = [int(label) for label in args.classes.split(",")]
    read = [READERS[name](Path(args.data_dir).expanduser()) for name in args.data_sets]
    arrays = side_by_side([sample(source, args.train, args.test, classes) for source in read])
    np.savez_compressed(args.file, **arrays)
    print(f"{args.file}: {len(arrays['train_y'])} training and {len(arrays['test_y'])} test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
