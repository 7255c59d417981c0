"""Folder scan: what lies in folders of images, in alphabetical order: images, folders, and what is skipped.

A folder that cannot be read, links that lead in a circle, and names that are not UTF-8 are a `DataError`.
"""

import os
import sys
from collections import Counter
from pathlib import Path

from engram.utils.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
N_KINDS = 8  # kinds of skipped files that are named


def scan(folder: str | Path) -> list["os.DirEntry[str]"]:
    """What lies in a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{shown(folder)}: the folder cannot be read ({error.strerror}); check its permissions"
        ) from None


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether the entry is a folder, or a link to one, whose images are wanted."""
    try:
        folder = entry.is_dir()
    except OSError as error:
        raise DataError(f"{shown(entry.path)}: {error.strerror}; remove it") from None
    if folder:
        _require_utf8(entry)
    return folder


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder whose images are wanted: hidden ones are not."""
    return [entry.name for entry in scan(folder) if is_folder(entry) and entry.name[0] != "."]


def holds_folders_only(folder: Path) -> bool:
    """Whether each folder in a folder holds folders and no image: folders of classes, as domains are."""
    if not folder.is_dir():
        return False
    names = class_folders(folder)
    return bool(names) and all(class_folders(folder / n) and not _has_image(folder / n) for n in names)


def _has_image(folder: Path) -> bool:
    """Whether an image lies directly in the folder."""
    return any(is_image(entry) for entry in scan(folder))


def is_image(entry: "os.DirEntry[str]") -> bool:
    """Whether the entry is a file with an image's ending, in upper or lower case.

    Raises `DataError` for a folder, pipe or broken link of such a name.
    """
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    _require_utf8(entry)
    try:
        reason = "a broken link, a folder or a pipe" if not entry.is_file() else ""
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise DataError(f"{entry.path}: not a file ({reason}); replace or remove it")
    return True


def kind_of(entry: "os.DirEntry[str]") -> str:
    """What is said of an entry that is skipped: the ending of its name, or `subfolder`."""
    try:
        if entry.is_dir():
            return "subfolder"
    except OSError:
        return "link in a circle"
    return os.path.splitext(shown(entry.name))[1].lower() or shown(entry.name)


def images_below(folder: Path, skipped: Counter[str]) -> list[Path]:
    """The images in a folder and all folders below it; links to folders are not followed."""
    paths = []
    for entry in scan(folder):
        if entry.is_dir(follow_symlinks=False):
            paths += images_below(folder / entry.name, skipped)
        elif is_image(entry):
            paths.append(folder / entry.name)
        else:
            skipped[kind_of(entry)] += 1
    return paths


def say_skipped(root: Path, skipped: Counter[str]) -> None:
    """Say in one line how many files of which kind are not among the images."""
    if skipped:
        kinds = [f"{n:,} {kind}" for kind, n in skipped.most_common(N_KINDS)]
        if len(skipped) > N_KINDS:
            kinds.append(f"and {len(skipped) - N_KINDS} other kinds")
        n = skipped.total()
        print(f"{shown(root)}: {n:,} file{'s'[: n > 1]} skipped: {', '.join(kinds)}", file=sys.stderr)


def shown(path: str | Path) -> str:
    """A path as text that every terminal and file takes: bytes that are not UTF-8 are written in hex."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _require_utf8(entry: "os.DirEntry[str]") -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{shown(entry.path)}: its name is not UTF-8; rename it") from None
