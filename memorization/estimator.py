"""Estimator: memorization scores, their standard errors and influences, from outputs of many networks.

Source: Feldman & Zhang 2020, "What Neural Networks Memorize and Why" (arXiv 2008.03703), eqs. 1 to 3:

    mem(i)      = E[v(i) | i in S] − E[v(i) | i not in S]
    infl(i, j)  = E[v(j) | i in S] − E[v(j) | i not in S]       j a test example

over networks trained on random subsets S of the training set. v is the softmax probability of the
label (the memorization paper, Kozal et al. 2025) or whether the prediction is right (Feldman & Zhang);
these functions take either. Pure arrays in, arrays out.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Counts = NDArray[np.number]


class Estimate(NamedTuple):
    """A difference of two means for each example, and what it was made from; every field has its shape.

    stderr: of `scores`, from the spread over networks; NaN with fewer than two networks on a side.
    freedom: its degrees of freedom, after Welch and Satterthwaite; NaN where no network differs.
    """

    scores: Floats
    stderr: Floats
    freedom: Floats
    mean_in: Floats
    mean_out: Floats
    n_in: Counts
    n_out: Counts

    @property
    def ci95(self) -> Floats:
        """Half the width of a 95 % confidence interval of `scores`: Student's, since networks are few."""
        quantile = stdtrit(self.freedom, 0.975)
        return np.where(self.stderr > 0, quantile * self.stderr, self.stderr)

    def measured(self) -> "Estimate":
        """The same with NaN as score where fewer than two networks on a side leave its error unknown."""
        return self._replace(scores=np.where(np.isnan(self.stderr), np.nan, self.scores))


class Side(NamedTuple):
    """Of the networks on one side of a difference: mean, variance of the mean, and how many there are."""

    mean: Floats
    variance: Floats
    n: Counts


def memorization(values: ArrayLike, member: ArrayLike) -> Estimate:
    """Scores of the training examples.

    values: (R, N) output v of network r on example i. member: (R, N) bool, i was in r's training set.
    The standard error is Welch's, sqrt(s²_in/n_in + s²_out/n_out) with ddof = 1: networks are
    independent, and the two variances differ (in-outputs crowd near 1).
    """
    values, member = np.asarray(values, dtype=np.float64), np.asarray(member, dtype=bool)
    if values.shape != member.shape:
        raise ValueError(f"values {values.shape} and member {member.shape} must have one shape")
    centre = values.mean(0)
    shifted = values - centre

    def side(chosen: NDArray[np.bool_]) -> Side:
        selected = np.where(chosen, shifted, 0.0)
        return _moments(selected.sum(0), (selected**2).sum(0), chosen.sum(0))

    return _difference(side(member), side(~member), centre)


def influence(values: ArrayLike, member: ArrayLike) -> Estimate:
    """Influence of every training example i on every test example j; fields are (N, M).

    values: (R, M) output v of network r on test example j. member: (R, N) bool. One matrix product for
    each side; split the test examples where N · M numbers are too many.
    """
    values, member = np.asarray(values, dtype=np.float64), np.asarray(member, dtype=np.float64)
    centre = values.mean(0)
    shifted = values - centre

    def side(chosen: Floats) -> Side:
        n = np.broadcast_to(chosen.sum(0)[:, None], (member.shape[1], values.shape[1]))
        return _moments(chosen.T @ shifted, chosen.T @ shifted**2, n)

    return _difference(side(member), side(1 - member), centre)


def _moments(total: Floats, squares: Floats, n: Counts) -> Side:
    """Mean, variance of the mean and count, from sums of values around a common centre."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(n > 0, total / n, np.nan)
        # rounding may leave a tiny negative number where all values are equal
        variance = np.maximum(squares - n * mean**2, 0) / (n - 1)
        return Side(mean, np.where(n > 1, variance / n, np.nan), n)


def _difference(inside: Side, outside: Side, centre: Floats) -> Estimate:
    variance = inside.variance + outside.variance
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / sum(side.variance**2 / (side.n - 1) for side in (inside, outside))
    return Estimate(
        inside.mean - outside.mean, np.sqrt(variance), freedom, inside.mean + centre, outside.mean + centre,
        inside.n, outside.n,
    )  # fmt: skip


def split_half_reliability(
    values: ArrayLike, member: ArrayLike, correlation: Callable[[Floats, Floats], float],
    rng: np.random.Generator, n_splits: int = 20,
) -> float:  # fmt: skip
    """Correlation to expect between two independent estimates with all R networks each.

    The networks are halved at random, each half gives its own scores, and the halves' `correlation`
    r (a function of two vectors) is brought to full length by Spearman and Brown's 2r / (1 + r); the
    mean over `n_splits` halvings. Its square root is about the most by which a proxy, however good, can
    be expected to correlate with the estimated scores. The formula takes the noise of a half for twice
    that of the whole; with random subsets, where 1/n_in + 1/n_out falls faster than 1/R, it is more, so
    that the result is slightly low: .787 where .795 is true for 24 networks. Of eight it may be off by
    .03 either way. NaN where the halves have fewer than three examples in common.
    """
    values, member = np.asarray(values), np.asarray(member, dtype=bool)
    reliabilities = []
    for _ in range(n_splits):
        order = rng.permutation(len(values))
        halves = np.array_split(order[: len(order) // 2 * 2], 2)
        a, b = (memorization(values[half], member[half]).scores for half in halves)
        defined = np.isfinite(a) & np.isfinite(b)
        if defined.sum() < 3:
            return float("nan")
        r = correlation(a[defined], b[defined])
        reliabilities.append(2 * r / (1 + r))
    return float(np.mean(reliabilities))
