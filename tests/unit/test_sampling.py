"""What a part of the tasks and of their samples says of all, against every sample that can be drawn."""

import itertools

import numpy as np
import pytest

from engram.utils.metrics.sampling import mean_of_seen, standard_errors

HITS = np.array([1, 0, 1, 1, 0])  # of the five test samples of a task


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_standard_error_is_right_on_average_over_all_samples_that_can_be_drawn(n):
    """The mean of its square is the variance of the accuracies that are measured on n of the five."""
    drawn = np.array([HITS[list(rows)].mean() for rows in itertools.combinations(range(5), n)])
    assert (standard_errors(drawn, n, 5) ** 2).mean() == pytest.approx(drawn.var(), abs=1e-12)


def test_standard_errors_by_hand():
    """Of one sample of five the error is unknown, of one of one there is none."""
    got = standard_errors(
        [[0.5], [0.9], [1.0], [1.0], [np.nan], [np.nan]],
        [[100], [1000], [1], [1], [0], [5]],
        [[1000], [1000], [1], [5], [5], [5]],
    )
    expected = [[np.sqrt(0.25 / 99 * 0.9)], [0], [0], [np.nan], [np.nan], [np.nan]]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_mean_of_seen_and_its_error_are_right_on_average_over_all_choices_of_tasks(m):
    row = np.array([0.2, 0.5, 0.1, 0.4, 0.95])  # the last is the task just learned
    estimates = []
    for chosen in itertools.combinations(range(4), m):
        part = np.full(5, np.nan)
        part[[*chosen, 4]] = row[[*chosen, 4]]
        estimates.append(mean_of_seen(part))
    means, errors = np.array(estimates).T
    assert means.mean() == pytest.approx(row.mean())
    assert (errors**2).mean() == pytest.approx(means.var(), abs=1e-15)


def test_the_errors_of_the_accuracies_count_too():
    row, errors = np.array([0.2, np.nan, 0.5, 0.8]), np.array([0.03, np.nan, 0.04, 0.05])
    mean, error = mean_of_seen(row, errors)
    between = np.var([0.2, 0.5], ddof=1) / 2 * (1 - 2 / 3)  # two of three earlier tasks
    within = (0.03**2 + 0.04**2) / 2 / 3
    assert mean == pytest.approx((3 * 0.35 + 0.8) / 4)
    assert error == pytest.approx(np.sqrt(9 * (between + within) + 0.05**2) / 4)


def test_where_everything_was_evaluated_it_is_the_plain_mean():
    row = np.array([0.1, 0.7, 0.4])
    assert mean_of_seen(row) == (row.mean(), 0)
    assert mean_of_seen(row[:1], np.array([0.02])) == (0.1, 0.02)
    assert mean_of_seen(row, np.full(3, 0.03)).error == pytest.approx(0.03 / np.sqrt(3))


def test_what_cannot_be_estimated_is_nan():
    assert np.isnan(mean_of_seen([np.nan, np.nan, 0.5])).all()
    mean, error = mean_of_seen([np.nan, 0.3, 0.5])
    assert mean == pytest.approx((2 * 0.3 + 0.5) / 3) and np.isnan(error)
    assert np.isnan(mean_of_seen(np.full(3, np.nan))).all()
