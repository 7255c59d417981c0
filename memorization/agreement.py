"""Agreement: how well one vector of scores ranks examples as another does; pure functions on arrays."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Vector = NDArray[np.float64]
MEASURES: dict[str, Callable[[Vector, Vector], float]] = {
    "pearson": lambda a, b: stats.pearsonr(a, b).statistic,
    "spearman": lambda a, b: stats.spearmanr(a, b).statistic,
    "kendall": lambda a, b: stats.kendalltau(a, b).statistic,
}
LEVEL = 0.95
MIN_CLASS_SIZE = 3


class Correlation(NamedTuple):
    """A correlation and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def correlations(a: Vector, b: Vector, n_bootstrap: int, rng: np.random.Generator) -> dict[str, Correlation]:
    """Pearson's, Spearman's and Kendall's (tau-b), each with a 95 % percentile interval.

    Examples are resampled in pairs, with replacement; the interval is about which examples there are,
    not about the noise of the scores (for that: standard errors, and the noise ceiling).
    """
    resamples = rng.integers(len(a), size=(n_bootstrap, len(a)))
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    results = {}
    for name, measure in MEASURES.items():
        values = [measure(a[rows], b[rows]) for rows in resamples if varies(a[rows]) and varies(b[rows])]
        low, high = np.quantile(values, tails) if values else (np.nan, np.nan)
        value = measure(a, b) if varies(a) and varies(b) else np.nan
        results[name] = Correlation(float(value), float(low), float(high))
    return results


def by_class(a: Vector, b: Vector, labels: NDArray[np.int64]) -> dict[int, float]:
    """Spearman's correlation inside each class of at least three examples; NaN for a constant vector."""
    results = {}
    for label in np.unique(labels):
        in_class = labels == label
        if in_class.sum() >= MIN_CLASS_SIZE:
            x, y = a[in_class], b[in_class]
            defined = varies(x) and varies(y)
            results[int(label)] = float(MEASURES["spearman"](x, y)) if defined else float("nan")
    return results


def strongest_first(correlation: float) -> float:
    """A key that sorts correlations of either sign from the strongest to the weakest, undefined ones last."""
    return float("inf") if np.isnan(correlation) else -abs(correlation)


def varies(values: Vector) -> bool:
    """Whether a vector holds more than one value: only then has it a correlation."""
    return bool((values != values[0]).any())
