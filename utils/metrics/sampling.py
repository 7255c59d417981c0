"""Sampling: what an evaluation of some tasks, on some of their test samples, says of all of them.

The tasks and the samples are drawn without replacement, so every standard error has the correction for a
finite population: it is 0 where everything was evaluated. Source: Cochran 1977, "Sampling Techniques",
section 3.2 (a share), 5.3 (strata) and 10.3 (samples within sampled units).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram.utils.metrics.statistics import standard_deviation

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean and its standard error, both fractions."""

    mean: float
    error: float


def standard_errors(accuracies: ArrayLike, n_drawn: ArrayLike, n_all: ArrayLike) -> Floats:
    """sqrt(p (1 − p) / (n − 1) · (1 − n / N)) of accuracies p that were measured on n of N test samples.

    Its square is right on average over the samples that can be drawn. NaN where p is, and where one sample of
    several says nothing of the others; 0 where all were measured. With p = 0 or 1 it is 0, which then only
    says that n was too small to see another value.
    """
    p, n, N = (np.asarray(values, dtype=np.float64) for values in (accuracies, n_drawn, n_all))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = p * (1 - p) / (n - 1) * (1 - n / N)
    variance = np.where((n == 1) & (N > 1), np.nan, variance)
    errors: Floats = np.sqrt(np.where((n == N) & ~np.isnan(p), 0.0, variance))
    return errors


def mean_of_seen(accuracies: ArrayLike, errors: ArrayLike | None = None) -> Estimate:
    """The mean accuracy over the tasks seen, of (t,) accuracies that are NaN for tasks not evaluated.

    The last task is always evaluated and counts for itself; the m evaluated ones of the M earlier tasks are
    a random sample that stands for all M. `errors` (t,) are the accuracies' own standard errors. NaN without
    an evaluated task to estimate from; the error needs two of the earlier tasks, unless all were evaluated.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    own = np.zeros_like(values) if errors is None else np.asarray(errors, dtype=np.float64)
    M = len(values) - 1
    measured = ~np.isnan(values[:-1])
    earlier, m = values[:-1][measured], int(measured.sum())
    if M == 0:
        return Estimate(float(values[-1]), float(own[-1]))
    if m == 0:
        return Estimate(float("nan"), float("nan"))
    between = 0.0 if m == M else float(standard_deviation(earlier)) ** 2 / m * (1 - m / M)
    within = (own[:-1][measured] ** 2).mean() / M
    mean = values.mean() if m == M else (M * earlier.mean() + values[-1]) / (M + 1)
    variance = (M**2 * (between + within) + own[-1] ** 2) / (M + 1) ** 2
    return Estimate(float(mean), float(np.sqrt(variance)))
