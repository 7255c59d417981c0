"""Metrics on the check matrix of DESIGN §3, by hand and against loops; definitions kept apart."""

import numpy as np
import pytest

from engram.utils.metrics import accuracy_matrix

R = np.array([[0.80, 0.10, 0.05], [0.85, 0.90, 0.10], [0.90, 0.60, 0.92]])
B = np.array([0.10, 0.05, 0.02])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (accuracy_matrix.average_accuracy, (0.90 + 0.60 + 0.92) / 3),
        (accuracy_matrix.backward_transfer, -0.10),
        (accuracy_matrix.forgetting, 0.125),  # not mammoth's .15, not Avalanche's .10
        (accuracy_matrix.forgetting_over_tasks, (0.0 + 0.3 + 0.0) / 3),
        (accuracy_matrix.learning_accuracy, (0.80 + 0.90 + 0.92) / 3),
        (accuracy_matrix.retained_minus_learned, (2.42 - 2.62) / 3),
        (accuracy_matrix.average_incremental_accuracy, (0.80 + 0.875 + 2.42 / 3) / 3),
    ],
)
def test_check_matrix(metric, expected):
    assert metric(R) == pytest.approx(expected, abs=1e-12)


def test_forward_transfer():
    assert accuracy_matrix.forward_transfer(R, B) == pytest.approx(((0.10 - 0.05) + (0.10 - 0.02)) / 2)


def test_forgetting_is_negative_when_old_tasks_improve():
    assert accuracy_matrix.forgetting([[0.5, 0.0], [0.7, 0.9]]) == pytest.approx(-0.2)
    assert accuracy_matrix.forgetting_over_tasks([[0.5, 0.0], [0.7, 0.9]]) == 0


def test_forgetting_counts_what_a_network_knew_before_the_task_was_trained():
    """Chaudhry et al. 2018, eq. 3: task 0 lost nothing, task 1 fell from .7, before its turn, to .5."""
    matrix = np.array([[0.5, 0.7, 0.1], [0.5, 0.6, 0.1], [0.5, 0.5, 0.9]])
    assert accuracy_matrix.forgetting(matrix) == pytest.approx(0.10)
    assert accuracy_matrix.summary(matrix)["forgetting"] == pytest.approx(0.10)
    assert accuracy_matrix.mean_known_forgetting(matrix) == pytest.approx(0.10)
    assert accuracy_matrix.forgetting_over_tasks(matrix) == pytest.approx(0.1 / 3)  # from the task's own row
    matrix[np.triu_indices(3, 1)] = np.nan  # --ignore_other_metrics: the rows that are known
    assert accuracy_matrix.forgetting(matrix) == pytest.approx(0.05)


def test_fm_is_forgetting_times_share_when_nothing_improves():
    """The relation between the memorization paper's FM and its logged forgetting."""
    rng = np.random.default_rng(0)
    matrix = np.tril(np.sort(rng.uniform(size=(7, 7)), axis=0)[::-1])  # class-IL whose columns fall
    assert accuracy_matrix.forgetting_over_tasks(matrix) == pytest.approx(
        accuracy_matrix.forgetting(matrix) * 6 / 7
    )


def test_against_loops():
    rng = np.random.default_rng(1)
    for T in (2, 3, 8):
        matrix, b = rng.uniform(size=(T, T)), rng.uniform(size=T)
        drops = [max(matrix[i][j] for i in range(T - 1)) - matrix[T - 1][j] for j in range(T - 1)]
        assert accuracy_matrix.forgetting(matrix) == pytest.approx(sum(drops) / (T - 1))
        gains = [matrix[T - 1][j] - matrix[j][j] for j in range(T - 1)]
        assert accuracy_matrix.backward_transfer(matrix) == pytest.approx(sum(gains) / (T - 1))
        ahead = [matrix[j - 1][j] - b[j] for j in range(1, T)]
        assert accuracy_matrix.forward_transfer(matrix, b) == pytest.approx(sum(ahead) / (T - 1))


def test_what_was_not_measured_is_nan_and_arguments_stay_as_they_were():
    matrix = R.copy()
    matrix[np.triu_indices(3, 1)] = np.nan  # --ignore_other_metrics
    before = matrix.copy()
    assert accuracy_matrix.forgetting(matrix) == pytest.approx(0.125)
    assert np.isnan(accuracy_matrix.forward_transfer(matrix, B))
    np.testing.assert_array_equal(matrix, before)
    joint = np.full((3, 3), np.nan)
    joint[2] = [0.9, 0.8, 0.7]
    assert accuracy_matrix.average_accuracy(joint) == pytest.approx(0.8)
    assert np.isnan(accuracy_matrix.forgetting(joint)) and np.isnan(accuracy_matrix.backward_transfer(joint))


def test_forgetting_where_it_is_known_leaves_out_groups_that_a_task_lacks():
    """Task 1 has no sample of the group. Task 0: max(.8, .6, .5) − .4 = .4; task 2: .9 − .7 = .2."""
    nan = np.nan
    matrix = [[0.8, nan, 0.1, 0.2], [0.6, nan, 0.3, 0.1], [0.5, nan, 0.9, 0.0], [0.4, nan, 0.7, 1.0]]
    assert accuracy_matrix.mean_known_forgetting(matrix) == pytest.approx((0.4 + 0.2) / 2, abs=1e-12)
    assert np.isnan(accuracy_matrix.forgetting(matrix))
    assert accuracy_matrix.mean_known_forgetting(R) == pytest.approx(0.125, abs=1e-12)
    assert np.isnan(accuracy_matrix.mean_known_forgetting(np.full((3, 3), nan)))


def test_every_metric_is_a_python_float():
    """A NumPy number is refused by JSON and by checkpoints; NaN and a single task are cases of their own."""
    curve = [(0, np.array([0.9, np.nan])), (1, np.array([0.4, 0.2]))]
    values = list(accuracy_matrix.summary(R).values())
    for matrix in (R, np.full((3, 3), np.nan), R[:1, :1]):
        values += accuracy_matrix.summary(matrix).values()
        values += [
            accuracy_matrix.mean_known_forgetting(matrix),
            accuracy_matrix.forward_transfer(matrix, B[: len(matrix)]),
        ]
    values += [accuracy_matrix.min_accuracy(curve), accuracy_matrix.min_accuracy(curve[:1])]
    values += [accuracy_matrix.worst_case_accuracy(curve), accuracy_matrix.worst_case_accuracy(curve[:1])]
    assert [type(value) for value in values] == [float] * len(values)


def test_the_summary_names_every_metric_that_needs_r_alone():
    expected = {
        "average_accuracy": 2.42 / 3, "forgetting": 0.125, "fm": 0.1, "bwt": -0.1,
        "learning_accuracy": 2.62 / 3, "bti": -0.2 / 3,
        "average_incremental_accuracy": (0.80 + 0.875 + 2.42 / 3) / 3,
    }  # fmt: skip
    assert accuracy_matrix.summary(R) == pytest.approx(expected, abs=1e-12)


def test_one_task():
    assert accuracy_matrix.average_accuracy([[0.5]]) == 0.5
    assert np.isnan(accuracy_matrix.forgetting([[0.5]])) and np.isnan(
        accuracy_matrix.backward_transfer([[0.5]])
    )


def test_min_and_worst_case_accuracy():
    """Two tasks learned, the third in training: the dip of task 0 to .4 and of task 1 to .7 counts."""
    curve = [
        (0, np.array([0.9, np.nan, np.nan])),
        (1, np.array([0.4, 0.2, np.nan])),  # .2: task 1 is still being learned, does not count
        (1, np.array([0.8, 0.9, np.nan])),
        (2, np.array([0.6, 0.7, 0.3])),
        (2, np.array([0.7, 0.8, 0.9])),
    ]
    assert accuracy_matrix.min_accuracy(curve) == pytest.approx((0.4 + 0.7) / 2)
    assert accuracy_matrix.worst_case_accuracy(curve) == pytest.approx(0.9 / 3 + (2 / 3) * 0.55)
    assert accuracy_matrix.worst_case_accuracy(curve[:1]) == pytest.approx(0.9)


def test_the_last_task_of_a_curve_may_be_evaluated_once():
    curve = [(0, np.array([0.9, np.nan])), (0, np.array([0.8, np.nan])), (1, np.array([0.5, 0.7]))]
    assert accuracy_matrix.min_accuracy(curve) == pytest.approx(0.5)
    assert accuracy_matrix.worst_case_accuracy(curve) == pytest.approx(0.7 / 2 + 0.5 / 2)


def test_rows_that_were_not_evaluated_are_left_out_of_the_best():
    """Task 0: max(.8, .6) − .4; task 1: .9 − .5; task 2: .7 − .3."""
    nan = np.nan
    matrix = [[0.8, nan, nan, nan], [nan, nan, nan, nan], [0.6, 0.9, 0.7, nan], [0.4, 0.5, 0.3, 1.0]]
    assert accuracy_matrix.forgetting(matrix) == pytest.approx((0.4 + 0.4 + 0.4) / 3)
    assert accuracy_matrix.forgetting_over_tasks(matrix) == pytest.approx((0.4 + 0.4 + 0.4 + 0) / 4)


METRICS = [
    accuracy_matrix.average_accuracy, accuracy_matrix.learning_accuracy, accuracy_matrix.backward_transfer,
    accuracy_matrix.retained_minus_learned, accuracy_matrix.forgetting, accuracy_matrix.mean_known_forgetting,
    accuracy_matrix.forgetting_over_tasks, accuracy_matrix.average_incremental_accuracy,
    lambda matrix: accuracy_matrix.forward_transfer(matrix, B.tolist()),
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_nested_lists_will_do(metric):
    assert metric(R.tolist()) == metric(R)


@pytest.mark.parametrize("metric", METRICS)
def test_a_matrix_that_is_not_square_is_refused(metric):
    for shape in ((2, 3), (3, 2), (3,), (3, 3, 3)):
        with pytest.raises(ValueError, match=rf"square.*\({shape[0]}"):
            metric(np.zeros(shape))


def test_pictures_show_later_tasks_in_domain_il_alone():
    R, shown = [[0.5, 0.1], [0.4, 0.6]], [[0.5, np.nan], [0.4, 0.6]]
    np.testing.assert_array_equal(accuracy_matrix.of_learned_tasks(R, "domain-il"), R)
    for scenario in ("class-il", "task-il"):
        np.testing.assert_array_equal(accuracy_matrix.of_learned_tasks(R, scenario), shown)
