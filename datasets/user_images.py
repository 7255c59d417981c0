"""A user's own images: which are for training, which for testing, and of which domain each is.

What the user has not decided is decided by a seed, and said in a line: the same share of every class, in
every domain, is held out as test images. `split_hash` names the split that was used, however it is stored.
"""

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engram.datasets.arrays import Groups
from engram.datasets.folder_scan import class_folders, holds_folders_only, is_folder, say_skipped, scan
from engram.datasets.image_files import Listing, list_classes, read_table
from engram.datasets.sources import Source
from engram.datasets.storage import Storage, read_folder
from engram.utils.errors import DataError

SPLITS = ("train", "test")
IMAGE_FOLDER = "a folder that holds train/<class>/ and test/<class>/, or <class>/, with images"


@dataclass(frozen=True)
class UserImages:
    """The image files of both splits, relative to `root`; domains: of each image, None without any."""

    root: Path
    train: Listing
    test: Listing
    domains: Groups | None = None
    notes: tuple[str, ...] = ()

    @property
    def split_hash(self) -> str:
        """16 digits that change when an image changes its split, class or domain, or comes or goes.

        An image is known by the names of its class and of its file, so that `train/<class>/` and a
        `train.csv` with the same images are one split.
        """
        lines = []
        for split, listing in zip(SPLITS, (self.train, self.test), strict=True):
            domains = [""] * len(listing.labels)
            if self.domains:
                domains = [self.domains.names[i] for i in getattr(self.domains, split).tolist()]
            for path, label, domain in zip(*listing, domains, strict=True):
                lines.append("\0".join((split, domain, label, path.rpartition("/")[2])))
        return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=8).hexdigest()


def find_images(image_dir: str | None, data_dir: str, test_share: float, seed: int) -> UserImages:
    """The images that --image_dir names, else those of `train/` and `test/` in --data_dir."""
    if image_dir:
        return list_images(Path(image_dir).expanduser(), test_share, seed)
    return list_split(Path(data_dir).expanduser())  # no other data set in it is taken for a class


def list_images(given: Path, test_share: float, seed: int) -> UserImages:
    """The images of a folder, with splits or without, or of a CSV file; raises `DataError`.

    test_share: of each class that is held out, drawn by `seed`, where nothing says what is tested.
    """
    if given.suffix == ".csv":
        return _of_table(given, test_share, seed)
    if not given.is_dir():
        what = "a file, but no .csv" if given.exists() else "no such folder"
        raise DataError(f"--image_dir {given}: {what}; give {IMAGE_FOLDER}, or a CSV file path,label[,split]")
    if any((given / name).exists() for split in SPLITS for name in (split, f"{split}.csv")):
        return list_split(given)
    if not any(is_folder(entry) for entry in scan(given)):
        raise DataError(
            f"{given}: no folder in it; expected {IMAGE_FOLDER}, "
            "or train.csv and test.csv with columns path,label"
        )
    skipped = Counter[str]()
    listing = list_classes(given, ".", skipped)
    say_skipped(given, skipped)
    listing = Listing([path.removeprefix("./") for path in listing.paths], listing.labels)
    return _held_out(given, listing, None, test_share, seed)


def list_split(root: Path) -> UserImages:
    """The images of `train/` and `test/`, or of `train.csv` and `test.csv`; raises `DataError`.

    Domains are a column `domain` of the tables, or folders: `train/<domain>/<class>/`. Test images without
    domains beside training images with them are shared out: each domain is tested on an equal part of them.
    """
    listings: list[Listing] = []
    domains: list[list[str] | None] = []
    skipped = Counter[str]()
    for split in SPLITS:
        table = root / f"{split}.csv"
        if table.is_file():
            listing, columns = read_table(table, "domain")
            domains.append(columns.get("domain"))
        elif holds_folders_only(root / split):
            listing, domain_of = _list_domains(root, split, skipped)
            domains.append(domain_of)
        else:
            listing = list_classes(root, split, skipped)
            domains.append(None)
        listings.append(listing)
    say_skipped(root, skipped)
    return _with_domains(root, listings, domains)


def _list_domains(root: Path, split: str, skipped: Counter[str]) -> tuple[Listing, list[str]]:
    """The images in `root/split/<domain>/<class>/`, and the domain of each."""
    whole, domain_of = Listing([], []), list[str]()
    for name in class_folders(root / split):
        listing = list_classes(root, f"{split}/{name}", skipped)
        whole.paths.extend(listing.paths)
        whole.labels.extend(listing.labels)
        domain_of += [name] * len(listing.paths)
    return whole, domain_of


def read(listed: UserImages, img_size: int | None, storage: Storage) -> Source:
    """The decoded images, RGB, all of one size or brought to `img_size`."""
    decoded = read_folder(listed.root, (listed.train, listed.test), storage, img_size)
    decoded["classes"] = tuple(decoded["classes"])
    return Source("imagefolder", **decoded, notes=listed.notes, split_hash=listed.split_hash)


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
    divided = _divided(root, listing, domains, tested)
    return replace(divided, notes=(note, *divided.notes))


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
    of_split = [None if domains is None else [domains[i] for i in chosen] for chosen in rows.values()]
    return _with_domains(root, [train_files, test_files], of_split)


def _with_domains(root: Path, listings: Sequence[Listing], domains: Sequence[list[str] | None]) -> UserImages:
    """Both splits with the domain of each image as a number, after a check that domains are comparable."""
    (train, test), (of_train, of_test) = listings, domains
    if of_train is None:
        if of_test is not None:
            raise DataError(f"{root}: test images have domains and training images have none; give both")
        return UserImages(root, train, test)
    names, notes = sorted(set(of_train)), list[str]()
    if of_test is None:
        of_test = [names[i % len(names)] for i in range(len(test.labels))]
        notes.append(f"test images have no domain: each is tested on an equal part of {len(test.labels):,}")
    if missing := sorted(set(of_train) ^ set(of_test)):
        raise DataError(f"{root}: domain '{missing[0]}' has no training or no test image; add some")
    notes.insert(0, f"{len(names)} domains: {_first(names)}")
    notes += _compared_classes(root, train.labels, of_train)
    number_of = {name: number for number, name in enumerate(names)}
    train_domain, test_domain = (torch.tensor([number_of[n] for n in of]) for of in (of_train, of_test))
    groups = Groups("domain", train_domain, test_domain, tuple(names))
    return UserImages(root, train, test, groups, tuple(notes))


def _compared_classes(root: Path, labels: list[str], domains: list[str]) -> list[str]:
    """A line for each domain that lacks classes; raises `DataError` where domains are no such thing.

    In domain-IL all tasks have the same classes. A domain that shares none with the others is a task of
    new classes: a stream of them has another name and other flags.
    """
    classes = defaultdict(set)
    for domain, label in zip(domains, labels, strict=True):
        classes[domain].add(label)
    all_classes, notes = set(labels), []
    for domain, present in sorted(classes.items()):
        elsewhere = set().union(*(names for other, names in classes.items() if other != domain))
        if len(classes) > 1 and not present & elsewhere:
            raise DataError(
                f"{root}: domain '{domain}' shares no class with the others (it has {_first(present)}); for "
                "class-IL put the class folders into train/ and test/"
            )
        if lacking := all_classes - present:
            notes.append(
                f"domain {domain} lacks {len(lacking)} of {len(all_classes)} classes: {_first(lacking)}"
            )
    return notes


def _first(names: Collection[str], n: int = 6) -> str:
    """The first of some names, in alphabetical order, as a list in a sentence."""
    return ", ".join(sorted(names)[:n]) + (", ..." if len(names) > n else "")
