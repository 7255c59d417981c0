"""Training samples that are left out of a run, read from a file (`--exclude`)."""

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
    try:
        content = load(path)
    except UserError as error:
        raise UserError(f"--exclude: {error}; or with 'exclude', positions or a mask") from None
    array = content.get("exclude", content.get("scores"))  # a bare vector is read under that name
    if array is None:
        raise UserError(f"--exclude {path}: holds no array called 'exclude'")
    if "order_hash" in content and str(content["order_hash"]) != expected_hash:
        raise UserError(f"--exclude {path}: was made for another data set or sample order")
    if array.dtype == bool and array.shape == (n_train,):
        array = np.flatnonzero(array)
    is_index = np.issubdtype(array.dtype, np.integer) and array.ndim == 1
    if not is_index or (len(array) and not 0 <= array.min() <= array.max() < n_train):
        raise UserError(
            f"--exclude {path}: expected positions below {n_train} or a mask of {n_train} booleans, found "
            f"{array.dtype} {array.shape}"
        )
    return torch.from_numpy(np.unique(array).astype(np.int64))
