"""Matched forgetting: do networks forget what they memorized faster than what they know just as well?

Examples that networks memorized in the stream (their label's probability fell when they were left out) are
paired with examples of the same class that networks know as well right after the task, but did not memorize.
Both are then followed over the later tasks, in networks that saw them.

What is chosen for an extreme value by the networks that measure it falls back by selection alone. So a third
of the networks selects the examples, a second one says how likely such examples really are right after the
task (a monotone regression for either side: the memorized fall back further), and the last third measures
the pairs of equal expectation; each third takes each part once. How alike the pairs really were is measured
with it and reported beside the forgetting.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.isotonic import IsotonicRegression

from engram.memorization.estimator import memorization

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
MIN_EXAMPLES = 20  # of a side and task, to expect anything: a regression on fewer follows each one's noise
OUT_OF_REACH = 1e6  # cost of a pair that the caliper forbids; a sum of allowed ones stays far below


@dataclass(frozen=True)
class Matching:
    """When examples count as memorized, how alike a pair must be, and the resamplings of an interval."""

    low: float = 0.1
    high: float = 0.25
    caliper: float = 0.02
    n_bootstrap: int = 500


class StreamOutputs(NamedTuple):
    """What R networks gave for n examples after each of T tasks."""

    probabilities: Floats  # (T, R, n) of the label
    member: NDArray[np.bool_]  # (R, n) whether the network saw the example
    task: Rows  # (n,)
    labels: Rows  # (n,)


class Difference(NamedTuple):
    """Memorized minus not memorized, in points, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AgeResult:
    """Pairs followed for `age` tasks: what they lost, and how alike they were right after their task."""

    age: int
    n_pairs: int
    initial: Difference
    forgetting: Difference
    forgetting_memorized: float  # in points
    forgetting_others: float


class Pairs(NamedTuple):
    """Rows of memorized examples and of their partners, (k,) each, formed by networks that do not measure."""

    memorized: Rows
    others: Rows
    measuring: NDArray[np.int64]  # the networks that measure them


def matched_forgetting(
    outputs: StreamOutputs, matching: Matching, rng: np.random.Generator
) -> list[AgeResult]:
    """A result for every number of tasks since an example's own, over the pairs that lived so long.

    Raises `ValueError` where no memorized example finds a partner.
    """
    third = np.arange(len(outputs.member)) % 3
    groups = [form_pairs(outputs, third == i, third == (i + 1) % 3, matching) for i in range(3)]
    if not sum(len(group.memorized) for group in groups):
        raise ValueError(
            f"no example above {matching.high} has a partner up to {matching.low} in its class whose "
            f"expected probability is within {matching.caliper}, or tasks have fewer than {MIN_EXAMPLES} "
            "of either"
        )
    results = [measure(outputs, groups, age, matching, rng) for age in range(1, len(outputs.probabilities))]
    return [result for result in results if result is not None]


def form_pairs(
    outputs: StreamOutputs,
    selecting: NDArray[np.bool_],
    calibrating: NDArray[np.bool_],
    matching: Matching,
) -> Pairs:
    """Memorized examples with distinct partners of their class, the total distance as small as can be.

    Partners are alike in the probability that the calibrating networks give examples such as them. selecting,
    calibrating: (R,); networks of neither measure.
    """
    memorized, others = [], []
    for s in range(len(outputs.probabilities) - 1):  # those of the last task are forgotten by nothing
        rows = np.flatnonzero(outputs.task == s)
        estimate = memorization(*_outputs_of(outputs, s, selecting, rows))
        again = memorization(*_outputs_of(outputs, s, calibrating, rows)).mean_in
        high, low = estimate.scores > matching.high, estimate.scores <= matching.low
        expected = np.full(len(rows), np.nan)
        for side in (high, low):
            expected[side] = expected_again(estimate.mean_in[side], again[side])
        for label in np.unique(outputs.labels[rows]):
            of_label = (outputs.labels[rows] == label) & np.isfinite(expected)
            a, b = np.flatnonzero(high & of_label), np.flatnonzero(low & of_label)
            chosen_a, chosen_b = closest(expected[a], expected[b], matching.caliper)
            memorized.append(rows[a[chosen_a]])
            others.append(rows[b[chosen_b]])
    measuring = np.flatnonzero(~selecting & ~calibrating)
    return Pairs(np.concatenate(memorized), np.concatenate(others), measuring)


def _outputs_of(
    outputs: StreamOutputs, s: int, networks: NDArray[np.bool_], rows: Rows
) -> tuple[Floats, NDArray[np.bool_]]:
    cells = np.ix_(networks, rows)
    return outputs.probabilities[s][cells], outputs.member[cells]


def expected_again(first: Floats, again: Floats) -> Floats:
    """What to expect of networks for examples that some gave `first` and others `again`, (k,) each.

    It is the monotone function of `first` that is closest to `again`, over all classes of a task at once. NaN
    where none of the networks behind `first`, or none of those behind `again`, saw the example, and
    everywhere with fewer than MIN_EXAMPLES that both saw.
    """
    expected = np.full(len(first), np.nan)
    both = np.isfinite(first) & np.isfinite(again)
    if both.sum() >= MIN_EXAMPLES:
        monotone = IsotonicRegression(out_of_bounds="clip").fit(first[both], again[both])
        expected[both] = monotone.predict(first[both])
    return expected


def closest(a: Floats, b: Floats, caliper: float) -> tuple[Rows, Rows]:
    """Positions in a (k,) and b (m,) of pairs that differ by at most the caliper, each used once.

    As many pairs as possible, and of those choices the one of the smallest total distance.
    """
    distance = np.abs(a[:, None] - b[None])
    cost = np.where(distance <= caliper, distance, OUT_OF_REACH)
    rows, columns = linear_sum_assignment(cost)
    allowed = distance[rows, columns] <= caliper
    return rows[allowed], columns[allowed]


def measure(
    outputs: StreamOutputs, groups: list[Pairs], age: int, matching: Matching, rng: np.random.Generator
) -> AgeResult | None:
    """Differences over the pairs that are `age` tasks old at some time; None without any.

    The interval resamples networks and memorized examples at once, so that it holds for others of both; an
    example that several groups paired is drawn for all of them alike.
    """
    n_tasks = len(outputs.probabilities)
    groups = [_that_reach(group, outputs.task, n_tasks - 1 - age) for group in groups]
    groups = [group for group in groups if len(group.memorized)]
    if not groups:
        return None
    values = [_PairValues.of(outputs, group, age) for group in groups]
    point = _pooled([v.means(np.ones(v.n_networks), np.ones(v.n_pairs)) for v in values])
    examples = np.unique(np.concatenate([group.memorized for group in groups]))
    of_pairs = [np.searchsorted(examples, group.memorized) for group in groups]
    resampled = []
    for _ in range(matching.n_bootstrap):
        drawn = _resample(len(examples), rng)
        parts = zip(values, of_pairs, strict=True)
        resampled.append(_pooled([v.means(_resample(v.n_networks, rng), drawn[rows]) for v, rows in parts]))
    initial, lost_memorized, lost_others = point
    ends = np.array(resampled)
    return AgeResult(
        age, sum(v.n_pairs for v in values), _difference(initial, ends[:, 0]),
        _difference(lost_memorized - lost_others, ends[:, 1] - ends[:, 2]),
        100 * lost_memorized, 100 * lost_others,
    )  # fmt: skip


class _PairValues(NamedTuple):
    """Probabilities of pairs right after their task and `age` tasks later; the networks that saw each."""

    before: Floats  # (2, M, k): memorized or not, measuring network, pair
    after: Floats
    seen: Floats  # 1 where the network saw the example, else 0

    @classmethod
    def of(cls, outputs: StreamOutputs, pairs: Pairs, age: int) -> "_PairValues":
        rows = np.stack([pairs.memorized, pairs.others])  # (2, k)
        networks, task = pairs.measuring[None, :, None], outputs.task[rows][:, None, :]
        return cls(
            outputs.probabilities[task, networks, rows[:, None]],
            outputs.probabilities[task + age, networks, rows[:, None]],
            outputs.member[networks, rows[:, None]].astype(np.float64),
        )

    @property
    def n_networks(self) -> int:
        return self.before.shape[1]

    @property
    def n_pairs(self) -> int:
        return self.before.shape[2]

    def means(self, of_networks: Floats, of_pairs: Floats) -> tuple[float, Floats]:
        """Weighted sums over pairs: (total weight, (3,) initial difference, what either side lost)."""
        weights = self.seen * of_networks[None, :, None]
        total = weights.sum(1)
        with np.errstate(invalid="ignore"):
            before = (weights * self.before).sum(1) / total
            lost = before - (weights * self.after).sum(1) / total
        sums = np.stack([before[0] - before[1], lost[0], lost[1]])
        defined = (total > 0).all(0)  # some measuring network saw both of the pair
        of_pairs = of_pairs * defined
        return float(of_pairs.sum()), (np.where(defined, sums, 0) * of_pairs).sum(1)


def _that_reach(pairs: Pairs, task: Rows, last: int) -> Pairs:
    reaching = task[pairs.memorized] <= last
    return Pairs(pairs.memorized[reaching], pairs.others[reaching], pairs.measuring)


def _pooled(groups: list[tuple[float, Floats]]) -> Floats:
    weight = sum(group[0] for group in groups)
    return np.asarray(sum(group[1] for group in groups) / weight)


def _resample(n: int, rng: np.random.Generator) -> Floats:
    """How often each of n is drawn when n are drawn with replacement."""
    return np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)


def _difference(value: float, resampled: Floats) -> Difference:
    low, high = np.quantile(resampled, (0.025, 0.975)) if len(resampled) else (np.nan, np.nan)
    return Difference(100 * float(value), 100 * float(low), 100 * float(high))
