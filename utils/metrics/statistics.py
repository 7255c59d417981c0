"""Statistics over seeds: mean ± std, confidence intervals, paired tests, correction for several tests.

The whole project computes them here and nowhere else. Standard deviations have ddof = 1.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Spread:
    """n values: mean, standard deviation and the half-width of the 95 % confidence interval.

    The interval is Student's, mean ± t(0.975, n − 1) · std / √n. Both are NaN for a single value.
    """

    n: int
    mean: float
    std: float
    ci95: float


@dataclass(frozen=True)
class Paired:
    """Differences a − b of n pairs: mean, standard deviation, Student's t (n − 1 degrees) and two-sided p.

    ci95: the half-width of the mean's 95 % confidence interval, as in `Spread`.
    """

    n: int
    mean: float
    std: float
    t: float
    p: float
    ci95: float


def standard_deviation(values: ArrayLike, axis: int = 0) -> NDArray[np.float64]:
    """Along one axis, with ddof = 1: an array of the other axes' shape, NaN for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape[axis] < 2:
        return np.full(np.delete(values.shape, axis), np.nan)
    deviations: NDArray[np.float64] = values.std(axis, ddof=1)
    return deviations


def mean_std_ci(values: ArrayLike) -> Spread:
    """The spread of (n,) values, none of them NaN; with no value the mean is NaN too."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 2:
        return Spread(n, float(values.mean()) if n else math.nan, math.nan, math.nan)
    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes a second to import

    std = float(standard_deviation(values))
    return Spread(n, float(values.mean()), std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n))


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """The paired t-test of a against b, (n,) each, pair by pair (here: by seed).

    Differences that are all the same have no spread: t is then infinite, or NaN if they are all zero.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    spread = mean_std_ci(difference)
    n, mean, std = spread.n, spread.mean, spread.std
    if n < 2:
        return Paired(n, mean, std, math.nan, math.nan, math.nan)
    # the differences of numbers near 1 carry rounding of this size, which is no spread
    if std < 1e-12:
        t = math.copysign(math.inf, mean) if abs(mean) > 1e-12 else math.nan
        return Paired(n, mean, 0.0, t, 0.0 if math.isinf(t) else math.nan, 0.0)
    from scipy.special import stdtr  # as in `mean_std_ci`

    t = mean / (std / math.sqrt(n))
    return Paired(n, mean, std, t, float(2 * stdtr(n - 1, -abs(t))), spread.ci95)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction of m tests: p_(k) · (m − k + 1), made monotone, at most 1; NaN stays NaN.

    Holm 1979, "A simple sequentially rejective multiple test procedure". Tests without a p do not count.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = [math.nan] * len(p_values), 0.0  # corrected values never fall in this order
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[i] = highest
    return corrected
