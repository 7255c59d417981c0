"""Subsets: which examples a network is trained on. The draws are those of the memorization paper's code.

The paper's vectors line up only if every choice is scikit-learn's `train_test_split` with the same
arguments, on positions in the same order: first a range of classes, then a fraction of the data, whose
positions stay in the drawn order, then one half of those for each repeat.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from engram.utils.errors import UserError
from engram.utils.scores import drawn_part

Positions = NDArray[np.int64]


def part(labels: NDArray[np.int64], classes: tuple[int, int], share: float) -> Positions:
    """Positions of a stratified `share` of the examples of a range of classes, in the drawn order."""
    return drawn_part(labels, classes, share, f"--dataset_size {share}")


def half(labels: NDArray[np.int64], repeat: int, ratio: float = 0.5) -> Positions:
    """Positions that the network of a repeat is trained on: a stratified `ratio` of all."""
    return _split(labels, 1 - ratio, repeat, f"--subset_ratio {ratio}")[0]


def memberships(labels: NDArray[np.int64], n_repeats: int, ratio: float = 0.5) -> NDArray[np.bool_]:
    """(R, N) bool: whether example i is in the training set of repeat r."""
    member = np.zeros((n_repeats, len(labels)), dtype=bool)
    for repeat in range(n_repeats):
        member[repeat, half(labels, repeat, ratio)] = True
    return member


def _split(labels: NDArray[np.int64], test_size: float, seed: int, flag: str) -> list[Positions]:
    try:
        positions: list[Positions] = train_test_split(
            np.arange(len(labels)), test_size=test_size, random_state=seed, stratify=labels
        )
        return positions
    except ValueError as error:
        raise UserError(f"{flag}: {len(labels)} examples cannot be split so: {error}") from error
