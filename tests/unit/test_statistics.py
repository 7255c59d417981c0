import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from engram.utils.metrics.statistics import holm, mean_std_ci, paired, standard_deviation

A, B = [0.81, 0.79, 0.84, 0.80, 0.86], [0.78, 0.80, 0.79, 0.77, 0.80]


def test_spread_by_hand():
    found = mean_std_ci([1.0, 2.0, 4.0])
    assert (found.n, found.mean) == (3, pytest.approx(7 / 3))
    assert found.std == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2))
    assert found.ci95 == pytest.approx(4.302653 * found.std / math.sqrt(3), rel=1e-6)  # t(0.975, 2)


def test_standard_deviation_along_an_axis_by_hand():
    """Of 1, 2, 4 and of 0, 0, 3: sqrt(14/3 / 2) and sqrt(6 / 2)."""
    values = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 3.0]])
    assert standard_deviation(values) == pytest.approx([math.sqrt(7 / 3), math.sqrt(3)])
    assert standard_deviation(values.T, axis=1) == pytest.approx([math.sqrt(7 / 3), math.sqrt(3)])
    alone = standard_deviation(values[:1])
    assert alone.shape == (2,) and np.isnan(alone).all()


def test_one_value_has_no_spread():
    found = mean_std_ci([3.0])
    assert (found.n, found.mean) == (1, 3.0) and math.isnan(found.std) and math.isnan(found.ci95)


def test_intervals_cover_the_mean_in_95_of_100():
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    covered = sum(abs(s.mean) <= s.ci95 for s in map(mean_std_ci, draws))
    # binomial(4000, 0.95): five standard deviations are 69, passed by chance once in two million
    assert abs(covered - 3800) < 69


def test_paired_agrees_with_scipy():
    found, wanted = paired(A, B), stats.ttest_rel(A, B)
    assert (found.t, found.p) == (pytest.approx(wanted.statistic), pytest.approx(wanted.pvalue))
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))


def test_paired_without_spread():
    above, same = paired([0.2, 0.3], [0.1, 0.2]), paired(A, A)
    assert above.t == math.inf and above.p == 0
    assert math.isnan(same.t) and math.isnan(same.p)
    assert math.isnan(paired([1.0], [0.5]).p)


def test_paired_both_ways():
    """Exchanged sides change the sign of t and nothing of p; without spread, too."""
    forward, backward = paired(A, B), paired(B, A)
    assert backward.t == pytest.approx(-forward.t) and backward.p == pytest.approx(forward.p)
    assert 0 < backward.p < 1
    below = paired([0.1, 0.2], [0.2, 0.3])
    assert (below.std, below.t, below.p) == (0.0, -math.inf, 0.0)
    assert below.mean == pytest.approx(-0.1) and below.n == 2


def test_results_are_python_numbers_that_stay_as_they_are():
    """JSON and MLflow take Python's floats."""
    results = [mean_std_ci([1.0, 2.0, 4.0]), mean_std_ci([3.0]), mean_std_ci([])]
    results += [paired(A, B), paired(A, A), paired([1.0], [0.5]), paired([0.2, 0.3], [0.1, 0.2])]
    for result in results:
        values = dataclasses.asdict(result)
        assert type(values.pop("n")) is int and {type(value) for value in values.values()} == {float}
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.mean = 0.0
    assert results[2].n == 0 and math.isnan(results[2].mean)
    assert results[5].n == 1 and results[5].mean == 0.5 and math.isnan(results[5].std)


def test_holm_by_hand():
    # sorted .01 .02 .04 .05 → x4 x3 x2 x1 = .04 .06 .08 .05 → made monotone .04 .06 .08 .08
    assert holm([0.04, 0.01, 0.05, 0.02]) == pytest.approx([0.08, 0.04, 0.08, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([0.02, math.nan])
    assert corrected[0] == 0.02 and math.isnan(corrected[1])


def test_standard_deviations_of_nested_lists():
    """Of 1, 3 and of 2, 8: √2 and √18."""
    assert standard_deviation([[1, 2], [3, 8]]) == pytest.approx([math.sqrt(2), math.sqrt(18)])
