"""Checkpoints: written atomically, read back with `weights_only=True`."""

import os
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from engram.utils.config.config import OPERATIONAL, Config, up_to_date
from engram.utils.errors import UserError
from engram.utils.files import put_in_place


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another run; the message says what to do."""


def write(content: dict[str, Any], path: Path) -> None:
    """Save so that a crash at any moment leaves either the old file or the new one, complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    put_in_place(temporary, path)


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; nothing in the file can run code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint file") from None
    except (RuntimeError, EOFError, UnpicklingError, zipfile.BadZipFile, struct.error, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({reason[:120]}); remove it, or start the run again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a checkpoint of this project")
    return content


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The network weights, by name, in a file that --savecheck wrote or in a run's checkpoint."""
    content = read(Path(path).expanduser())
    weights = content.get("method", content).get("net")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: holds no network weights; give a file made by --savecheck")
    return weights


def check_same_run(saved: dict[str, Any], config: Config, classes: list[str], path: Path) -> None:
    """Refuse a checkpoint of another configuration, or of other classes or another order of them."""
    flags, stored = config.flat(), up_to_date(saved.get("config", {}))
    names = [k for k in flags if k not in OPERATIONAL and flags[k] != stored.get(k)]
    if names:
        differ = ", ".join(f"--{k} is {flags[k]}, there {stored.get(k)}" for k in names[:3])
        raise CheckpointError(f"{path} belongs to another run: {differ}")
    if saved.get("classes") != classes:
        raise CheckpointError(
            f"{path}: the classes of the data, or their order, were others when it was written (images "
            "changed, or another version of this program); bring those back, or start the run again"
        )
