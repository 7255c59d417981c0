"""Exclusion: training samples that are left out of a run, from a file (`--exclude`)."""

import numpy as np
import torch
from torch import Tensor

from engram.utils.errors import UserError
from engram.utils.scores import load


def read(path: str, n_train: int, expected_hash: str) -> Tensor:
    """(k,) positions in the training set, ascending and distinct.

    From a .npz with `exclude` (and, where there is one, the `order_hash` of the data set) or a .npy:
    whole numbers are positions, booleans a mask over the training set. Never unpickled.
    """
    content = load(path)
    found = content.get("exclude", content.get("scores"))  # a bare vector is read under that name
    if found is None:
        raise UserError(f"--exclude {path}: holds no array called 'exclude'")
    if "order_hash" in content and str(content["order_hash"]) != expected_hash:
        raise UserError(f"--exclude {path}: was made for another data set or sample order")
    if found.dtype == bool and found.shape == (n_train,):
        found = np.flatnonzero(found)
    whole = np.issubdtype(found.dtype, np.integer) and found.ndim == 1
    if not whole or (len(found) and not 0 <= found.min() <= found.max() < n_train):
        raise UserError(
            f"--exclude {path}: expected positions below {n_train} or a mask of {n_train} booleans, found "
            f"{found.dtype} {found.shape}"
        )
    return torch.from_numpy(np.unique(found).astype(np.int64))
