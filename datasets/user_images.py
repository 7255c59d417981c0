"""A user's own images: which are for training, which for testing, and of which domain each is.

What the user has not decided is decided by a seed, and said in a line: the same share of every class, in
every domain, is held out as test images.
"""

import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engram.datasets.arrays import Groups
from engram.datasets.folder_scan import is_folder, say_skipped, scan
from engram.datasets.image_files import Listing, list_classes, list_folder, read_table
from engram.datasets.sources import Source
from engram.datasets.storage import Storage, read_folder
from engram.utils.errors import DataError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class UserImages:
    """The image files of both splits, relative to `root`; domains: of each image, None without any."""

    root: Path
    train: Listing
    test: Listing
    domains: Groups | None = None
    notes: tuple[str, ...] = ()


def list_images(given: Path, test_share: float, seed: int) -> UserImages:
    """The images of a folder, with splits or without, or of a CSV file; raises `DataError`.

    test_share: of each class that is held out, drawn by `seed`, where nothing says what is tested.
    """
    if given.suffix == ".csv":
        return _of_table(given, test_share, seed)
    if not given.is_dir():
        raise DataError(f"--image_dir {given}: no such folder; give one that holds train/ and test/")
    if any((given / name).exists() for split in SPLITS for name in (split, f"{split}.csv")):
        return UserImages(given, *list_folder(given))
    if not any(is_folder(entry) for entry in scan(given)):
        raise DataError(
            f"{given}: no folder in it; expected train/<class>/ and test/<class>/, or <class>/, with images, "
            "or train.csv and test.csv with columns path,label"
        )
    skipped = Counter[str]()
    listing = list_classes(given, ".", skipped)
    say_skipped(given, skipped)
    listing = Listing([path.removeprefix("./") for path in listing.paths], listing.labels)
    return _held_out(given, listing, None, test_share, seed)


def read(listed: UserImages, img_size: int | None, storage: Storage) -> Source:
    """The decoded images, RGB, all of one size or brought to `img_size`."""
    decoded = read_folder(listed.root, (listed.train, listed.test), storage, img_size)
    return Source("imagefolder", **decoded | {"classes": tuple(decoded["classes"])}, notes=listed.notes)


def _of_table(table: Path, test_share: float, seed: int) -> UserImages:
    listing, columns = read_table(table, "split", "domain")
    domains, splits = columns.get("domain"), columns.get("split")
    if splits is None:
        return _held_out(table.parent, listing, domains, test_share, seed)
    if wrong := sorted(set(splits) - set(SPLITS)):
        raise DataError(f"{table}: column split has '{wrong[0]}'; expected train or test")
    return _divided(table.parent, listing, domains, np.array(splits) == "test")


def _held_out(
    root: Path, listing: Listing, domains: list[str] | None, test_share: float, seed: int
) -> UserImages:
    """A split with `test_share` of each class (of each domain) as test images, drawn by `seed`."""
    members = defaultdict(list)
    for i, key in enumerate(zip(domains or [""] * len(listing.labels), listing.labels, strict=True)):
        members[key].append(i)
    tested = np.zeros(len(listing.labels), dtype=bool)
    for (domain, label), rows in members.items():
        if len(rows) < 2:
            of = f" of domain '{domain}'" if domain else ""
            raise DataError(
                f"{root}: class '{label}'{of} has one image, and needs one to train on and one to test"
            )
        n = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
        # a class of its own: others that come or go do not change its test images
        draws = np.random.default_rng([seed, zlib.crc32(f"{domain}/{label}".encode())])
        tested[draws.permutation(rows)[:n]] = True
    note = (
        f"{(~tested).sum():,} training and {tested.sum():,} test images: {100 * test_share:g} % of each "
        f"class held out by --split_seed {seed}"
    )
    return replace(_divided(root, listing, domains, tested), notes=(note,))


def _divided(
    root: Path, listing: Listing, domains: list[str] | None, tested: NDArray[np.bool_]
) -> UserImages:
    """The images with `tested` (N,) as the test set."""
    rows = {"train": np.flatnonzero(~tested), "test": np.flatnonzero(tested)}
    for split, chosen in rows.items():
        if not len(chosen):
            raise DataError(f"{root}: no image is for {split}; the column split says so of none")
    train_files, test_files = (
        Listing([listing.paths[i] for i in chosen], [listing.labels[i] for i in chosen])
        for chosen in rows.values()
    )
    if domains is None:
        return UserImages(root, train_files, test_files)
    names = sorted(set(domains))
    number = np.array([names.index(domain) for domain in domains])
    train, test = (torch.from_numpy(number[chosen]) for chosen in rows.values())
    if missing := sorted(set(range(len(names))) - (set(train.tolist()) & set(test.tolist()))):
        raise DataError(f"{root}: domain '{names[missing[0]]}' has no training or no test image; add some")
    return UserImages(root, train_files, test_files, Groups("domain", train, test, tuple(names)))
