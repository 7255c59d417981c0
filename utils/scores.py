"""Scores: per-sample memorization scores from a file, keyed by position in the training set."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError


def order_hash(labels: Tensor) -> str:
    """Identifies a data set and the order of its samples: a hash of the original labels, in order."""
    return hashlib.blake2b(labels.cpu().numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()


def _load(file: Path) -> tuple[np.ndarray, str | None]:
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content, None
    with content:
        known = str(content["order_hash"]) if "order_hash" in content.files else None
        return content["scores"], known


def read(path: str, n_train: int, expected_hash: str) -> Tensor:
    """(n_train,) float64 scores from a .npz of this project or a plain .npy vector, never unpickled."""
    file = Path(path).expanduser()
    try:
        scores, found_hash = _load(file)
    except FileNotFoundError:
        raise UserError(f"--memorization_scores {path}: no such file") from None
    except KeyError:
        raise UserError(f"--memorization_scores {path}: holds no array called 'scores'") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--memorization_scores {path}: cannot be read ({error}); expected .npz with 'scores', or .npy"
        ) from None
    if scores.shape != (n_train,):
        raise UserError(
            f"--memorization_scores {path}: has shape {scores.shape}, the training set needs ({n_train},): "
            "the scores belong to another data set or a part of it"
        )
    if found_hash is not None and found_hash != expected_hash:
        raise UserError(
            f"--memorization_scores {path}: the scores belong to another data set or sample order"
        )
    if not (np.issubdtype(scores.dtype, np.number) and np.isfinite(scores).all()):
        raise UserError(f"--memorization_scores {path}: scores must be finite numbers")
    return torch.from_numpy(scores.astype(np.float64))
