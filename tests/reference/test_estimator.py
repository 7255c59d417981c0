"""Memorization scores, influences and standard errors against enumeration of all subsets of a toy."""

import itertools
from functools import cache

import numpy as np
import pytest
from scipy import stats

from engram.memorization import estimator
from engram.memorization.estimator import influence, memorization, split_half_reliability

N, SIZE = 12, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2))
X[:, 0] += np.where(X[:, 0] > 0, 1.5, -1.5)
Y = (X[:, 0] > 0).astype(int)
Y[[2, 7]] = 1 - Y[[2, 7]]  # wrong labels, which must be memorized
TEST_X = RNG.normal(size=(5, 2))
TEST_Y = (TEST_X[:, 0] > 0).astype(int)


def ridge_probability(train: list[int], x: np.ndarray, y: int) -> float:
    """Probability of label y from a ridge classifier fitted to the examples `train`; deterministic."""
    A = np.hstack([X[train], np.ones((len(train), 1))])
    w = np.linalg.solve(A.T @ A + 0.1 * np.eye(3), A.T @ (2 * Y[train] - 1))
    p = 1 / (1 + np.exp(-3 * (np.append(x, 1) @ w)))
    return float(p if y == 1 else 1 - p)


def nearest_is_right(train: list[int], x: np.ndarray, y: int) -> float:
    """Whether the nearest of the examples `train` has label y."""
    return float(Y[min(train, key=lambda i: ((X[i] - x) ** 2).sum())] == y)


LEARNERS = {"ridge": ridge_probability, "1-NN": nearest_is_right}
SUBSETS = [list(s) for s in itertools.combinations(range(N), SIZE)]


@cache
def outputs(learner: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every subset: v on the training examples (R, N), on the test examples (R, M), membership (R, N)."""
    learn = LEARNERS[learner]
    on_train = [[learn(s, X[i], Y[i]) for i in range(N)] for s in SUBSETS]
    on_test = [[learn(s, x, y) for x, y in zip(TEST_X, TEST_Y, strict=True)] for s in SUBSETS]
    member = [[i in s for i in range(N)] for s in SUBSETS]
    return np.array(on_train), np.array(on_test), np.array(member)


@pytest.mark.parametrize("learner", LEARNERS)
def test_all_subsets_give_the_definition(learner):
    """Feldman and Zhang's expectations written as loops over all 924 subsets."""
    on_train, on_test, member = outputs(learner)
    found, spread = memorization(on_train, member), influence(on_test, member)
    for i in range(N):
        inside = [on_train[r][i] for r, s in enumerate(SUBSETS) if i in s]
        outside = [on_train[r][i] for r, s in enumerate(SUBSETS) if i not in s]
        expected = sum(inside) / len(inside) - sum(outside) / len(outside)
        assert found.scores[i] == pytest.approx(expected, abs=1e-12)
        assert (found.n_in[i], found.n_out[i]) == (462, 462)
        assert found.mean_in[i] == pytest.approx(np.mean(inside), abs=1e-12)
        se = np.sqrt(np.var(inside, ddof=1) / 462 + np.var(outside, ddof=1) / 462)
        assert found.stderr[i] == pytest.approx(se, abs=1e-12)
        for j in range(len(TEST_X)):
            inside = [on_test[r][j] for r, s in enumerate(SUBSETS) if i in s]
            outside = [on_test[r][j] for r, s in enumerate(SUBSETS) if i not in s]
            assert spread.scores[i, j] == pytest.approx(np.mean(inside) - np.mean(outside), abs=1e-12)
            se = np.sqrt(np.var(inside, ddof=1) / 462 + np.var(outside, ddof=1) / 462)
            assert spread.stderr[i, j] == pytest.approx(se, abs=1e-12)


def test_the_nearest_neighbour_memorizes_wrong_labels():
    """1-NN is always right on its own examples, so mem = 1 − P[right without]; the two flipped lead."""
    on_train, _, member = outputs("1-NN")
    found = memorization(on_train, member)
    assert found.mean_in == pytest.approx(1)
    assert set(np.argsort(found.scores)[-2:].tolist()) == {2, 7}
    assert found.scores[[2, 7]].min() > 0.9 and found.scores.min() < 0.1


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_standard_error_is_the_spread_of_re_estimates(learner):
    """800 studies of 60 random subsets each.

    The mean score lies within 4.5 standard errors of the truth (12 checks, false alarm < 1e-4); the
    mean squared standard error is the variance of the scores within 25 % (a variance estimated from
    800 studies has a relative error of 5 % for normal scores, here at most 6 %); and 95 % intervals
    cover the truth in 90 to 98 % of cases, pooled over examples.
    """
    values, _, member = outputs(learner)
    truth = memorization(values, member).scores
    rng = np.random.default_rng(1)
    chosen = rng.integers(len(SUBSETS), size=(800, 60))
    studies = [memorization(values[c], member[c]) for c in chosen]
    scores, errors = (np.array([getattr(s, f) for s in studies]) for f in ("scores", "stderr"))
    z = (scores.mean(0) - truth) / (scores.std(0, ddof=1) / np.sqrt(800))
    assert np.abs(z).max() < 4.5
    varying = scores.std(0) > 1e-9
    ratio = (errors[:, varying] ** 2).mean(0) / scores[:, varying].var(0, ddof=1)
    assert 0.75 < ratio.min() and ratio.max() < 1.25
    half_width = np.array([study.ci95 for study in studies])
    covered = (np.abs(scores - truth) < half_width)[:, varying]
    if learner == "ridge":  # 0/1 values with few successes have no normal intervals
        assert 0.90 < covered.mean() < 0.98


@pytest.mark.parametrize(("n_in", "n_out"), [(4, 4), (2, 6), (3, 2), (20, 20)])
def test_intervals_of_few_networks_cover_95_percent(n_in, n_out):
    """20,000 examples with normal outputs, whose deviation is 1 with and 2 without the example.

    Welch's approximation is known to cover .95 within .01 with four networks a side and more (Student's t of
    normal quantiles instead covers .88), and at least .94 with fewer; a share of 20,000 has a standard
    error of .0016, four and a half of which are allowed on top: false alarm < 1e-4.
    """
    rng = np.random.default_rng(6)
    values = np.concatenate((rng.normal(0.5, 1, (n_in, 20_000)), rng.normal(0, 2, (n_out, 20_000))))
    member = np.repeat([True, False], (n_in, n_out))[:, None] + np.zeros((1, 20_000), bool)
    found = memorization(values, member)
    covered = (np.abs(found.scores - 0.5) < found.ci95).mean()
    assert 0.94 - 0.007 < covered < (0.96 if min(n_in, n_out) > 3 else 0.98) + 0.007
    if n_in == 4:
        assert (np.abs(found.scores - 0.5) < 1.96 * found.stderr).mean() < 0.90


def test_intervals_by_hand():
    """Scipy's Welch test; and no width where no network differs from another."""
    values = np.array([[0.1, 1.0], [0.5, 1.0], [0.2, 1.0], [0.9, 0.0], [0.3, 0.0]])
    found = memorization(values, np.repeat([[True], [False]], (3, 2), axis=0) + np.zeros((1, 2), bool))
    expected = stats.ttest_ind(values[:3, 0], values[3:, 0], equal_var=False)
    assert found.freedom[0] == pytest.approx(expected.df)
    interval = expected.confidence_interval(0.95)
    assert found.ci95[0] == pytest.approx((interval.high - interval.low) / 2)
    assert found.ci95[1] == 0 and found.stderr[1] == 0


def test_standard_errors_shrink_with_the_root_of_the_number_of_networks():
    values, _, member = outputs("ridge")
    rng = np.random.default_rng(2)
    few, many = (
        np.mean([memorization(values[c], member[c]).stderr for c in rng.integers(924, size=(50, n))])
        for n in (40, 640)
    )
    assert few / many == pytest.approx(4, rel=0.05)


def test_without_enough_networks_there_is_no_number():
    found = memorization([[0.5, 0.2], [0.7, 0.4], [0.1, 0.9]], [[1, 1], [1, 0], [1, 0]])
    assert np.isnan(found.scores[0]) and found.n_out[0] == 0
    assert found.scores[1] == pytest.approx(0.2 - 0.65) and np.isnan(found.stderr[1])
    assert np.isnan(found.measured().scores).all() and np.isnan(found.ci95).all()
    assert np.isnan(split_half_reliability(np.ones((3, 4)), np.eye(3, 4), lambda a, b: 1.0, RNG))
    with pytest.raises(ValueError, match="one shape"):
        memorization(np.zeros((2, 3)), np.zeros((2, 4)))


def test_four_networks_by_hand():
    """Two on each side, one and three, four and none; lists will do."""
    values = [[0.5, 0.1, 0.3], [0.7, 0.3, 0.4], [0.2, 0.8, 0.1], [0.3, 0.2, 0.9]]
    member = [[True, True, True], [True, False, True], [False, False, True], [False, False, True]]
    columns, nan = np.array(values).T, np.nan
    own, others = memorization(values, member), influence(values, member)
    assert own.n_in.tolist() == [2, 1, 4] and own.n_out.tolist() == [2, 3, 0]
    assert others.n_in.tolist() == [[2] * 3, [1] * 3, [4] * 3]
    assert others.n_out.tolist() == [[2] * 3, [3] * 3, [0] * 3]
    for j, v in enumerate(columns):  # training example 0, 1 and 2 on test example j
        np.testing.assert_allclose(others.mean_in[:, j], [v[:2].mean(), v[0], v.mean()])
        np.testing.assert_allclose(others.mean_out[:, j], [v[2:].mean(), v[1:].mean(), nan])
        np.testing.assert_allclose(
            others.scores[:, j], [v[:2].mean() - v[2:].mean(), v[0] - v[1:].mean(), nan]
        )
        # the variance of two numbers is half the square of their difference, that of their mean a quarter
        stderr = np.sqrt((v[0] - v[1]) ** 2 / 4 + (v[2] - v[3]) ** 2 / 4)
        np.testing.assert_allclose(others.stderr[:, j], [stderr, nan, nan])
    for name in ("scores", "stderr", "mean_in", "mean_out"):
        np.testing.assert_allclose(getattr(own, name), np.diag(getattr(others, name)))


def test_large_common_values_do_not_cancel():
    member = np.arange(10)[:, None] % 2 == 0
    noise = np.linspace(0, 1e-3, 10)[:, None]
    near, far = memorization(noise, member), memorization(noise + 1e5, member)
    assert far.stderr == pytest.approx(near.stderr, rel=1e-5)


def test_split_halves_predict_the_correlation_of_two_studies():
    """Scores + noise of known size: the reliability of 40 networks is var(true) / (var(true) + noise)."""
    rng = np.random.default_rng(3)
    n, R = 3000, 40
    true = rng.uniform(0, 1, n)
    member = np.array([rng.permutation(R) < R // 2 for _ in range(n)]).T
    values = true * member + rng.normal(0, 1, (R, n))
    noise = 1 / 20 + 1 / 20
    expected = true.var() / (true.var() + noise)
    found = split_half_reliability(values, member, lambda a, b: stats.pearsonr(a, b)[0], rng)
    assert found == pytest.approx(expected, abs=0.03)
    again = true * member + rng.normal(0, 1, (R, n))
    both = [memorization(v, member).scores for v in (values, again)]
    assert found == pytest.approx(stats.pearsonr(*both)[0], abs=0.03)


def test_the_halves_are_equal_disjoint_and_drawn_anew(monkeypatch):
    """Nine networks: four and four; examples without a score in one half are left out of the correlation."""
    halves, correlated = [], []

    def spy(values, member):
        halves.append(values[:, 0].tolist())
        return memorization(values, member)

    def correlation(a, b):
        correlated.append(len(a))
        assert len(a) == len(b) and np.isfinite(a).all() and np.isfinite(b).all()
        return 0.5

    monkeypatch.setattr(estimator, "memorization", spy)
    rng = np.random.default_rng(4)
    values = np.arange(9.0)[:, None] + np.zeros((9, 30))
    member = rng.uniform(size=(9, 30)) < 0.25
    found = split_half_reliability(values, member, correlation, rng)
    assert found == pytest.approx(2 * 0.5 / 1.5) and type(found) is float
    assert len(halves) == 40 and len(correlated) == 20 and 0 < min(correlated) < max(correlated) < 30
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert len(first) == len(second) == 4 and len({*first, *second}) == 8
    assert len({tuple(half) for half in halves}) > 30
    lists = values.tolist(), member.tolist()
    assert split_half_reliability(*lists, lambda a, b: 0.5, rng, n_splits=3) == pytest.approx(2 / 3)
    assert len(halves) == 46
