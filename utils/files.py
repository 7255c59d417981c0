"""Files: text files that are written whole or not at all. Imports no torch: a sweep need not wait for it."""

import os
import secrets
from pathlib import Path


def write_text(text: str, path: Path) -> None:
    """Write the file so that a crash at any moment leaves either the old one or the new one, complete."""
    # a unique name: another process may be writing the same file
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file over an old one; when this returns, the change survives a power cut."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
