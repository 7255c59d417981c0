"""Checkpoints: written atomically, read back with `weights_only=True` and with their bytes verified."""

import io
import logging
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engram.utils.config.config import OPERATIONAL, Config, up_to_date
from engram.utils.errors import UserError
from engram.utils.files import damage_in_zip, disk_error, put_in_place, remove

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another run; the message says what to do."""


class DamagedFileError(ValueError):
    """A file that is not what `torch.save` wrote; the message says why, without its name."""


def write(content: dict[str, Any], path: Path) -> None:
    """Save so that a crash at any moment leaves either the old file or the new one, complete.

    Raises `DiskError` where the disk does not take it.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch hides a full disk
        if not isinstance(cause, OSError):
            raise
        remove(temporary)  # before the bytes that are free are counted
        raise disk_error(path, cause, _n_bytes(content)) from error
    finally:
        remove(temporary)


def _n_bytes(content: dict[str, Any]) -> int:
    """The size of a file with this content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.tell()


def load_verified(path: Path, mmap: bool = False) -> object:
    """What `torch.save` wrote to the file, on the CPU: the one way in which this project opens such files.

    mmap: leave tensors on the disk until they are used. Nothing in the file can run code. Raises
    `FileNotFoundError`, and `DamagedFileError` for a file that cannot be loaded or whose bytes have changed.
    """
    try:
        if reason := damage_in_zip(path):
            raise DamagedFileError(reason[:150])
        in_zip = zipfile.is_zipfile(path)
        if not (in_zip or _may_be_of_old_torch(path)):
            raise DamagedFileError("torch.save did not write it")
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and in_zip)
        if not in_zip:
            logger.warning(
                f"{path}: in torch's format of before 1.6, without checksums; damage goes unnoticed"
            )
        return content
    except (FileNotFoundError, DamagedFileError):
        raise
    except OSError as error:
        raise DamagedFileError(error.strerror or str(error)) from error
    except Exception as error:  # unpickling damaged bytes can raise anything
        reason = " ".join(str(error).split()) or "no message"
        raise DamagedFileError(f"{type(error).__name__}: {reason[:150]}") from error


def _may_be_of_old_torch(path: Path) -> bool:
    """Whether the file begins as a pickle does: so torch wrote before 1.6."""
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; nothing in the file can run code."""
    try:
        content = load_verified(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint file") from None
    except DamagedFileError as error:
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({error}); give another file, or start its run again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a checkpoint of this project")
    return content


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The network weights, by name, in a file that --savecheck wrote or in a run's checkpoint."""
    content = read(Path(path).expanduser())
    method = content.get("method", content)
    weights = method.get("net") if isinstance(method, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise CheckpointError(f"{path}: holds no network weights; give a file made by --savecheck")
    return weights


@contextmanager
def reading_parts(path: Path) -> Iterator[None]:
    """Inside, a part that is missing or of another form is a `CheckpointError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(
            f"{path}: a part is missing or of another form ({type(error).__name__}: {reason}); "
            "start the run again"
        ) from error


def differences(settings: dict[str, Any], config: Config, names: Collection[str]) -> list[str]:
    """`--lr is 0.1, there 0.3` for each of the named flags that differs from the stored configuration's."""
    flags, stored = config.flat(), up_to_date(settings)
    differing = [k for k in flags if k in names and flags[k] != stored.get(k)]
    return [f"--{k} is {flags[k]}, there {stored.get(k)}" for k in differing]


def check_same_run(saved: dict[str, Any], config: Config, classes: list[str], path: Path) -> None:
    """Refuse a checkpoint of another configuration, or of other classes or another order of them."""
    settings = saved.get("config")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: not a checkpoint of a run: it holds no configuration")
    if differ := differences(settings, config, config.flat().keys() - OPERATIONAL):
        raise CheckpointError(f"{path} belongs to another run: {', '.join(differ[:3])}")
    if saved.get("classes") != classes:
        raise CheckpointError(
            f"{path}: the classes of the data, or their order, were others when it was written (images "
            "changed, or another version of this program); bring those back, or start the run again"
        )
