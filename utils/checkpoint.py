"""Checkpoints: written atomically, read back with `weights_only=True`."""

import os
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

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
    """The network weights in a file that --savecheck, or a run's checkpoint, left."""
    content = read(Path(path).expanduser())
    weights = content.get("method", content).get("net")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: holds no network weights; give a file made by --savecheck")
    return weights
