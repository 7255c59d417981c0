"""Where the kernel keeps what: the layers' places in its arrays, and its space to work in.

All parameters lie in one flat vector,

    vector = [W1 | b1 | W2 | b2 | ... | WL | bL],   W of a layer (n_in, n_out), one row for each input,

so that a zero input (four fifths of an MNIST digit, about half of a ReLU layer's units) skips its whole
row and the others run at vector speed.

The functions of `models.parts.kernel_loops` know the fields of the tuples here by their order, also where
they were compiled before and lie on disk: they are compiled again only when their own file changes. So
change that file too when an order changes.
"""

from typing import NamedTuple

import numpy as np
import torch

# A layer: its place among them, its size, and where it begins in the vector, among all inputs, all units.
FIELDS = ("index", "n_in", "n_out", "parameters_start", "inputs_start", "units_start")
LAYER = np.dtype([(field, np.int64) for field in FIELDS])


def layout(sizes: list[int]) -> np.ndarray:
    """(L,) of `LAYER` from L + 1 sizes: inputs, hidden sizes, classes."""
    n_in, n_out = np.array(sizes[:-1]), np.array(sizes[1:])
    columns = [np.arange(len(n_in)), n_in, n_out]
    columns += [lengths.cumsum() - lengths for lengths in ((n_in + 1) * n_out, n_in, n_out)]
    return np.array(list(zip(*columns, strict=True)), LAYER)


class Inputs(NamedTuple):
    """What the network is given: `floats` (n, n_in), or `pixels` (n, n_in) if there is a `lookup` (256,)."""

    floats: np.ndarray
    pixels: np.ndarray
    lookup: np.ndarray


class Work(NamedTuple):
    """Space for n samples at once. S, U, M: inputs of all layers, units of all, inputs of the widest."""

    columns: np.ndarray  # (n, S) a sample's non-zero inputs: a layer's list begins at its inputs_start,
    values: np.ndarray  # (n, S) their values,
    counts: np.ndarray  # (n, L) and how long the lists are
    acts: np.ndarray  # (U,) what the layers give for one sample
    deltas: np.ndarray  # (n U,) derivatives by that before the ReLU, an (n, n_out) block for each layer
    ends: np.ndarray  # (M + 1,) one layer's lists by input, not by sample: where each input's ends,
    samples: np.ndarray  # (n M,) the samples in it
    amounts: np.ndarray  # (n M,) and how much of their derivatives the input's row is given


def space(layers: np.ndarray, n: int) -> Work:
    """Space for `n` samples, whatever it held before."""
    n_inputs, n_units, widest = layers["n_in"].sum(), layers["n_out"].sum(), layers["n_in"].max()
    whole = {"dtype": torch.int32}
    arrays = {
        "columns": torch.empty(n, n_inputs, **whole),
        "values": torch.empty(n, n_inputs),
        "counts": torch.empty(n, len(layers), **whole),
        "acts": torch.empty(n_units),
        "deltas": torch.empty(n * n_units),
        "ends": torch.empty(widest + 1, **whole),
        "samples": torch.empty(n * widest, **whole),
        "amounts": torch.empty(n * widest),
    }
    return Work(**{name: array.numpy() for name, array in arrays.items()})
