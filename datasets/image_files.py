"""Image files: lists the images of a data set: which split and which class each belongs to.

Files that are no images, by their ending, are counted and said in one line.
`fingerprint` identifies such a listing: what was decoded from it is used again only while no file changes.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from engram.datasets.folder_scan import SUFFIXES, is_folder, is_image, kind_of, say_skipped, scan, shown
from engram.utils.errors import DataError

FORMAT = 1  # of what is cached: a new number makes every old file unread
LAYOUT = f"expected {{0}}/<class>/ with images ({' '.join(SUFFIXES)}), or {{0}}.csv with columns path,label"
OMNIGLOT = ("images_background", "images_evaluation")


class Listing(NamedTuple):
    """Image files of one split, in order: paths relative to the folder, and the name of each one's class."""

    paths: list[str]
    labels: list[str]


def list_folder(root: Path) -> tuple[Listing, Listing]:
    """Training and test files of a folder: as `train.csv`, `test.csv` say, else all of `train/<class>/` etc.

    Class folders and the files in them are taken in alphabetical order.
    """
    splits, skipped = [], Counter[str]()
    for split in ("train", "test"):
        table = root / f"{split}.csv"
        splits.append(read_table(table)[0] if table.is_file() else list_classes(root, split, skipped))
    say_skipped(root, skipped)
    return splits[0], splits[1]


def list_tiny_imagenet(root: Path) -> tuple[Listing, Listing]:
    """Files of the official `tiny-imagenet-200`; its validation set is the test set."""
    train, skipped = Listing([], []), Counter[str]()
    for name in _lines(root / "wnids.txt"):
        paths = _images_in(root, f"train/{name}/images", skipped)
        train.paths.extend(paths)
        train.labels.extend([name] * len(paths))
    rows = [line.split("\t")[:2] for line in _lines(root / "val/val_annotations.txt")]
    if any(len(row) != 2 for row in rows):
        raise DataError(f"{root}/val/val_annotations.txt: damaged; expected file and class on each line")
    say_skipped(root, skipped)
    return train, Listing([f"val/images/{file}" for file, _ in rows], [name for _, name in rows])


def list_omniglot(root: Path) -> tuple[Listing, Listing]:
    """Files of torchvision's `omniglot-py`: drawings 1 to 15 of a character train, 16 to 20 test.

    Classes are called PART/ALPHABET/CHARACTER, so that the background set sorts before the evaluation set.
    """
    train, test, skipped = Listing([], []), Listing([], []), Counter[str]()
    folders = [folder for background in OMNIGLOT for folder in root.glob(f"{background}/*/*/")]
    for folder in sorted(f.relative_to(root).as_posix() for f in folders):
        paths = _images_in(root, folder, skipped)
        if len(paths) != 20:
            raise DataError(f"{root / folder}: {len(paths)} drawings, 20 expected; delete {root}")
        for split, drawings in ((train, paths[:15]), (test, paths[15:])):
            split.paths.extend(drawings)
            split.labels.extend([folder] * len(drawings))
    say_skipped(root, skipped)
    return train, test


def class_names(root: Path, train: Listing, test: Listing) -> tuple[str, ...]:
    """The classes of the training set, sorted (as numbers where all are); the test set must have the same."""
    names, tested = set(train.labels), set(test.labels)
    if extra := sorted(tested - names):
        raise DataError(f"{root}: test class '{extra[0]}' has no training images; add some or remove it")
    if untested := sorted(names - tested):
        raise DataError(
            f"{root}: class '{untested[0]}' has no test images; add some or remove it from training"
        )
    return tuple(sorted(names, key=int if all(n.isdecimal() for n in names) else None))


def list_classes(root: Path, split: str, skipped: Counter[str]) -> Listing:
    """The images of the class folders in `root/split/`; `skipped` counts what else lies there."""
    if not (root / split).is_dir():
        raise DataError(f"{root / split}: no such folder; " + LAYOUT.format(split))
    listing = Listing([], [])
    for entry in scan(root / split):
        if not is_folder(entry):
            skipped[f"{kind_of(entry)} outside a class folder"] += 1
        elif entry.name[0] != ".":
            paths = _images_in(root, f"{split}/{entry.name}", skipped)
            listing.paths.extend(paths)
            listing.labels.extend([entry.name] * len(paths))
        else:
            skipped["hidden folder"] += 1
    if not listing.paths:
        raise DataError(f"{root / split}: empty; " + LAYOUT.format(split))
    return listing


def _images_in(root: Path, folder: str, skipped: Counter[str]) -> list[str]:
    """The images of a folder, relative to `root`, by name; `skipped` counts what else lies there."""
    if not (root / folder).is_dir():
        raise DataError(f"{root / folder}: no such folder; the data set is incomplete, unpack it again")
    names = []
    for entry in scan(root / folder):
        if is_image(entry):
            names.append(entry.name)
        else:
            skipped[kind_of(entry)] += 1
    if not names:
        raise DataError(f"{root / folder}: no image ({' '.join(SUFFIXES)}); add some or remove the folder")
    return [f"{folder}/{name}" for name in names]


def read_table(table: Path, *optional: str) -> tuple[Listing, dict[str, list[str]]]:
    """The images that a CSV file with columns path,label lists, and those of the optional columns it has."""
    listing = Listing([], [])
    columns: dict[str, list[str]] = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if missing := {"path", "label"} - set(rows.fieldnames or ()):
                raise DataError(f"{table}: column '{min(missing)}' is missing; expected a header path,label")
            columns = {name: [] for name in optional if name in (rows.fieldnames or ())}
            for row in rows:
                path, label = row["path"], row["label"]
                if not path or not label:
                    raise DataError(f"{table}, line {rows.line_num}: path or label is empty; fill it in")
                if path[0] == "/" or ".." in path.split("/"):
                    raise DataError(
                        f"{table}, line {rows.line_num}: '{path}' lies outside {table.parent}; paths are "
                        "relative to it, without .."
                    )
                listing.paths.append(path)
                listing.labels.append(label)
                for name, values in columns.items():
                    if not row[name]:
                        raise DataError(f"{table}, line {rows.line_num}: {name} is empty; fill it in")
                    values.append(row[name])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: unreadable ({error}); save it as CSV in UTF-8") from error
    if not listing.paths:
        raise DataError(f"{table}: empty; one line for each image is needed")
    return listing, columns


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: unreadable ({error}); the data set is incomplete, unpack it again"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def fingerprint(root: Path, splits: Iterable[Listing], *settings: object) -> str:
    """Hash of the settings and of every file's path, label, size and time of its last change."""
    text = [repr((FORMAT, *settings))]
    for split in splits:
        for path, label in zip(*split, strict=True):
            try:
                stat = os.stat(os.path.join(root, path))
            except (OSError, ValueError) as error:  # a NUL in a path is a ValueError
                missing = isinstance(error, FileNotFoundError)
                reason = "no such file, though the listing names it" if missing else f"unreadable ({error})"
                raise DataError(
                    f"{shown(os.path.join(root, path))}: {reason}; put it there or take it out of the listing"
                ) from None
            text.append(f"{path}\t{label}\t{stat.st_size}\t{stat.st_mtime_ns}")
        text.append("")
    return hashlib.blake2b("\n".join(text).encode(), digest_size=32).hexdigest()
