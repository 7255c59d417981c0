"""Bare vectors: which examples a .npy of scores is about, which names no positions."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.memorization import study_data, subsets
from engram.memorization.correlate import CorrelateOptions
from engram.memorization.settings import DataOptions
from engram.utils.errors import UserError
from engram.utils.scores import parse_range

Arrays = dict[str, NDArray[Any]]
Positions = NDArray[np.int64]


@dataclass
class PositionFinder:
    """Gives the positions of the examples of each file; reads the data set only where a bare vector needs it.

    options: what the user says of bare vectors. named: a file that names its data set, if there is one.
    """

    options: CorrelateOptions
    named: Arrays | None

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """(N,) labels of the data set in order; None where nothing says which one it is."""
        dataset, data_dir = self.options.dataset, self.options.data_dir
        if dataset:
            return study_data.labels(DataOptions(dataset=dataset, data_dir=data_dir))
        if self.named is None:
            return None
        return study_data.labels(study_data.options_of(str(self.named["settings"]), data_dir))

    @property
    def read_labels(self) -> NDArray[np.int64] | None:
        """The labels, if a bare vector has needed them."""
        labels: NDArray[np.int64] | None = vars(self).get("labels")
        return labels

    def labels_are_unknown(self, *contents: Arrays) -> bool:
        """Whether none of the files, nor the user, says which examples the scores are of."""
        no_positions = not any("index" in content for content in contents)
        return no_positions and not self.options.dataset and self.named is None

    def positions(self, content: Arrays, n: int, path: str) -> Positions:
        """(n,) positions in the training set of the n examples in a file, in its order."""
        if "index" in content:
            positions: Positions = content["index"]
            return positions
        if not self.options.dataset and self.named is not None and n == int(self.named["n_train"]):
            return np.arange(n)
        if self.labels is None or n == len(self.labels):
            return np.arange(n)
        return self._part(n, path)

    def _part(self, n: int, path: str) -> Positions:
        """The first of the parts of the data set that the options name and that has n examples."""
        labels, options = self.labels, self.options
        assert labels is not None
        about = f"{path}: {n:,} scores without positions, of a data set of {len(labels):,} examples"
        if not options.dataset_size and options.class_range is None:
            raise UserError(f"{about}: say of which by --dataset_size SHARE or --class_range a,b")
        classes, lengths = parse_range(options.class_range, int(labels.max()) + 1), []
        for share in (*options.dataset_size, 1.0):
            positions = subsets.part(labels, classes, share)
            if len(positions) == n:
                return positions
            lengths.append(f"{len(positions):,}")
        raise UserError(f"{about}: --dataset_size and --class_range name parts of {', '.join(lengths)}")


def names_its_data(content: Arrays) -> bool:
    """Whether a file says which data set it is about, as those of these programs do."""
    named = {"settings", "n_train"} <= content.keys()
    return named and "dataset" in json.loads(str(content["settings"]))
