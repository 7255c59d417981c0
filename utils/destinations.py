"""Destinations: whether what a program is told to write can be written, asked before it works for hours.

Every check raises `UserError` with the flag, the path, and what to do. Nothing is left on the disk but the
folder of a file that may be written.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from engram.utils.errors import UserError

FIGURE_FORMATS = ("pdf", "svg", "png")  # here, since matplotlib takes a second to import

IsOurs = Callable[[Path], bool]  # whether an existing file is of the kind that the program writes


def check_file(path: str | Path, flag: str, suffixes: tuple[str, ...], is_ours: IsOurs | None = None) -> None:
    """Refuse a path where the file of this flag cannot be written, or should not.

    suffixes: endings that the name may have. is_ours: an existing file that is not empty is replaced only if
    this holds (None: whatever it is, as for figures).
    """
    file = Path(path).expanduser()
    given = f"{flag} {path}" if flag else str(path)
    if file.suffix not in suffixes:
        raise UserError(f"{given}: the name of this file ends in {' or '.join(suffixes)}; give such a name")
    _check_writable(file.parent, given)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        return
    if not file.is_file():
        raise UserError(f"{given}: a folder or device, not a file; give another name")
    if is_ours is not None and file.stat().st_size and not _holds(is_ours, file):
        raise UserError(
            f"{given}: exists and is no file that this program writes; give another name, or move it away"
        )


def check_folder(path: str | Path, flag: str) -> None:
    """Refuse a path where no folder can be made, or no file be written into the one that is there."""
    given = f"{flag} {path}" if flag else str(path)
    if os.path.isfile(Path(path).expanduser()):
        raise UserError(f"{given}: is a file, not a folder; give another path")
    _check_writable(Path(path).expanduser(), given)


def _check_writable(folder: Path, given: str) -> None:
    """Try to make a file, without a name, in the folder or in the nearest one above it that exists."""
    try:
        existing = _nearest(folder.absolute())
        if not existing.is_dir():
            raise UserError(f"{given}: {existing} is no folder; give another path")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL in a name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{given}: cannot be written ({reason}); give another path") from None


def _nearest(path: Path) -> Path:
    """The path, or the nearest one above it, that exists, be it as a link to nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path if path.is_symlink() else _nearest(path.parent)
    return path


def _holds(is_ours: IsOurs, file: Path) -> bool:
    try:
        return is_ours(file)
    except Exception:  # parsing the bytes of another kind of file can raise anything
        return False
