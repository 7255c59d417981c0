"""Names of files in tables and figures: short, and no two alike."""

from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[str]) -> list[str]:
    """What each file is called: the shortest end of its path that no other file's path has.

    `a/scores.npz` and `b/scores.npz` are `a/scores` and `b/scores`; the ending is named where it alone tells
    two files apart.
    """
    files = [Path(path).expanduser().resolve() for path in paths]
    return [_short_name(file, set(files) - {file}) for file in files]


def _short_name(file: Path, others: set[Path]) -> str:
    """The shortest end of the path of `file` that none of the `others` has."""
    for named in (Path.with_suffix, lambda path, ending: path):
        own, theirs = named(file, "").parts, [named(other, "").parts for other in others]
        for depth in range(1, len(own)):
            if all(parts[-depth:] != own[-depth:] for parts in theirs):
                return "/".join(own[-depth:])
    return str(file)
