"""Files: written whole or not at all; zip files verified. Imports no torch: a sweep need not wait for it."""

import os
import secrets
import zipfile
from pathlib import Path

ZIP_START = b"PK\x03\x04"


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


def damage_in_zip(path: Path) -> str | None:
    """Why the bytes of a zip file (.pt, .npz) are not those that were written; None if they are.

    Every entry is read and compared with its CRC, which `torch.load` does not do: 0.35 s per GB. None
    also for a file of another format, which has none. Raises `OSError` for a file that cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                entry = archive.testzip()
        except Exception as error:  # reading damaged bytes can raise anything
            return f"{type(error).__name__}: {error}"
    return f"the bytes of its entry {entry} do not match their CRC" if entry else None
