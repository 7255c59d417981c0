"""Files: written whole or not at all; zip files verified. Imports no torch: a sweep need not wait for it."""

import json
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engram.utils.errors import DiskError

CHECKSUM = "checksum"  # the key under which a document has its own
ZIP_START = b"PK\x03\x04"


def write_text(text: str, path: Path) -> None:
    """Write the file so that a crash at any moment leaves either the old one or the new one, complete."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def checksum(document: Mapping[str, object]) -> str:
    """CRC-32 of what a JSON or YAML file holds, however it is laid out; without `CHECKSUM` itself."""
    content = {name: value for name, value in document.items() if name != CHECKSUM}
    return f"{zlib.crc32(json.dumps(content, sort_keys=True, default=str).encode()):08x}"


def has_changed(document: Mapping[str, object]) -> bool:
    """Whether a file's content is not what its program wrote; one from before checksums is whole."""
    return CHECKSUM in document and document[CHECKSUM] != checksum(document)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file written there then takes the place of `path`, whole or not at all.

    Raises `DiskError` where the disk does not take it: the old file is unchanged and nothing is left over.
    """
    path = replaceable(path)
    # a unique name: another process may be writing the same file
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except OSError as error:
        n_bytes = temporary.stat().st_size if temporary.exists() else 0
        remove(temporary)  # before the bytes that are free are counted
        raise disk_error(path, error, n_bytes) from error
    finally:
        remove(temporary)


def replaceable(path: Path) -> Path:
    """The file that a new version of `path` replaces: of a link, which stays, its target.

    Raises `DiskError` where something is in the way that is no file.
    """
    try:
        target = path.resolve() if path.is_symlink() else path
    except (RuntimeError, OSError):  # before Python 3.13 a loop is a RuntimeError
        raise DiskError(f"{path}: cannot be written: a link that leads to itself") from None
    if target.exists() and not target.is_file():
        raise DiskError(f"{target}: cannot be written: a folder or device, not a file")
    return target


def remove(temporary: Path) -> None:
    """Delete a file if it exists and the disk allows it: one that was made read-only does not."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError, n_bytes: int) -> DiskError:
    """The error that names the file, the reason, the bytes that it takes at least and those that are free."""
    if isinstance(error, DiskError):
        return error
    existing = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    need = f"it takes {n_bytes:,} bytes or more, {free:,} are free" if n_bytes else f"{free:,} bytes are free"
    return DiskError(f"{path}: cannot be written ({error.strerror or error}): {need}")


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
