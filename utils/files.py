"""Files: written whole or not at all. Needs no torch, so that a sweep need not wait for it."""

import os
from pathlib import Path


def write_text(text: str, path: Path) -> None:
    """A crash at any moment leaves either the old file or the new one, complete."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(temporary, path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file over an old one; afterwards it is there whatever happens."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
