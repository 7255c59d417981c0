"""Scores: per-sample memorization scores in a file, keyed by position in the training set.

A file is a plain .npy vector with a number for every training sample, or a .npz holding at least `scores`
(n,), and as written here also `stderr` (n,), `index` (n,) positions in the training set that were
measured, `n_train`, `dataset`, `order_hash`, `settings` (JSON) and whatever else the program that wrote it
stores. Never pickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.utils import files
from engram.utils.errors import UserError


def order_hash(labels: Tensor) -> str:
    """Identifies a data set and the order of its samples: a hash of the original labels, in order."""
    return hashlib.blake2b(labels.cpu().numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()


def write(path: str | Path, settings: dict[str, Any], **arrays: Any) -> Path:
    """Save arrays and settings as .npz, whole or not at all; with a name ending in .npy `scores` alone."""
    file = Path(path).expanduser()
    if file.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: the name of a score file ends in .npz, or .npy for the bare vector")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(file) as temporary, open(temporary, "wb") as target:
            if file.suffix == ".npy":
                np.save(target, arrays["scores"])
            else:
                np.savez_compressed(target, settings=json.dumps(settings), **arrays)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None
    return file


def load(path: str | Path, *needed: str) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz (settings as a JSON string) or the vector of a .npy as `scores`."""
    file = Path(path).expanduser()
    try:
        if reason := files.damage_in_zip(file):
            raise ValueError(reason)
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            content = {"scores": content}
        else:
            with content:
                content = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # parsing damaged bytes can raise anything
        raise UserError(f"{path}: cannot be read ({error}); expected .npz with 'scores', or .npy") from None
    for name in needed:
        if name not in content:
            raise UserError(f"{path}: holds no array called '{name}'; it has {', '.join(content)}")
    return content


def read(path: str, n_train: int, expected_hash: str) -> Tensor:
    """(n_train,) float64 scores for a training set, NaN where the file's study measured none.

    Refused: a vector of another length, and a file made from another data set or sample order.
    """
    flag = f"--memorization_scores {path}"
    try:
        content = load(path, "scores")
    except UserError as error:
        raise UserError(f"--memorization_scores {error}") from None
    scores, index = content["scores"], content.get("index")
    if "order_hash" in content and str(content["order_hash"]) != expected_hash:
        raise UserError(f"{flag}: the scores belong to another data set or sample order")
    if not (np.issubdtype(scores.dtype, np.number) and np.isfinite(scores).all()):
        raise UserError(f"{flag}: scores must be finite numbers")
    if index is None and scores.shape != (n_train,):
        raise UserError(
            f"{flag}: has shape {scores.shape}, the training set needs ({n_train},): "
            "the scores belong to another data set or a part of it"
        )
    whole = torch.full((n_train,), torch.nan, dtype=torch.float64)
    positions = np.arange(n_train) if index is None else index
    if scores.shape != positions.shape or positions.ndim != 1 or not _within(positions, n_train):
        raise UserError(f"{flag}: its 'index' {positions.shape} does not fit {n_train} training samples")
    whole[torch.from_numpy(positions.astype(np.int64))] = torch.from_numpy(scores.astype(np.float64))
    return whole


def _within(positions: NDArray[Any], n: int) -> bool:
    whole = np.issubdtype(positions.dtype, np.integer)
    return bool(whole and len(positions) and positions.min() >= 0 and positions.max() < n)
