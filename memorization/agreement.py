"""Agreement: how well one vector of scores ranks examples as another does; pure functions on arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MEASURES = {
    "pearson": lambda a, b: stats.pearsonr(a, b).statistic,
    "spearman": lambda a, b: stats.spearmanr(a, b).statistic,
    "kendall": lambda a, b: stats.kendalltau(a, b).statistic,
}
LEVEL = 0.95


class Correlation(NamedTuple):
    """A correlation and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def correlations(
    a: NDArray, b: NDArray, n_bootstrap: int, rng: np.random.Generator
) -> dict[str, Correlation]:
    """Pearson's, Spearman's and Kendall's (tau-b), each with a 95 % percentile interval.

    Examples are resampled in pairs, with replacement; the interval is about which examples there are,
    not about the noise of the scores (for that: standard errors, and the noise ceiling).
    """
    draws = rng.integers(len(a), size=(n_bootstrap, len(a)))
    found = {}
    for name, measure in MEASURES.items():
        again = [measure(a[rows], b[rows]) for rows in draws if varies(a[rows]) and varies(b[rows])]
        tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
        low, high = np.quantile(again, tails) if again else (np.nan, np.nan)
        value = measure(a, b) if varies(a) and varies(b) else np.nan
        found[name] = Correlation(float(value), float(low), float(high))
    return found


def by_class(a: NDArray, b: NDArray, labels: NDArray) -> dict[int, float]:
    """Spearman's correlation inside each class of at least three examples; NaN for a constant vector."""
    found = {}
    for label in np.unique(labels):
        mine = labels == label
        if mine.sum() >= 3:
            known = varies(a[mine]) and varies(b[mine])
            found[int(label)] = float(MEASURES["spearman"](a[mine], b[mine])) if known else float("nan")
    return found


def varies(values: NDArray) -> bool:
    """Whether a vector holds more than one value: only then has it a correlation."""
    return bool((values != values[0]).any())
