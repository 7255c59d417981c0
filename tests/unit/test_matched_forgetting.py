"""Matched forgetting: against loops, and on networks whose forgetting is planted."""

import itertools

import numpy as np
import pytest

from engram.memorization.matched_forgetting import (
    Matching,
    StreamOutputs,
    closest,
    expected_again,
    form_pairs,
    matched_forgetting,
)
from engram.scripts.studies import stream_forgetting


def planted(rng, loss_of_memorized: float, n: int = 240, n_networks: int = 40) -> StreamOutputs:
    """Three tasks of two classes; a third of the examples is memorized.

    These are known at .9 if seen and .3 if not, the others at .9 either way. After each later task networks
    that saw them lose `loss_of_memorized` on the memorized and .1 on the others.
    """
    task = np.repeat(np.arange(3), n // 3)
    labels = 2 * task + np.arange(n) % 2
    memorized = np.arange(n) % 6 < 2
    member = rng.random((n_networks, n)) < 0.5
    probabilities = np.full((3, n_networks, n), np.nan)
    for t in range(3):
        age = t - task
        lost = np.where(memorized, loss_of_memorized, 0.1) * age
        known = np.where(memorized & ~member, 0.3, 0.9) - lost * member
        noisy = known + rng.normal(0, 0.001, known.shape)
        probabilities[t][:, age >= 0] = noisy[:, age >= 0]
    return StreamOutputs(probabilities, member, task, labels)


@pytest.mark.parametrize(("loss", "difference"), [(0.2, 10), (0.1, 0)])
def test_a_planted_difference_is_measured(loss, difference):
    """A loss of .2 against .1 a task is a difference of 10 points a task; of equal ones it is 0."""
    outputs = planted(np.random.default_rng(0), loss)
    results = matched_forgetting(outputs, Matching(n_bootstrap=200), np.random.default_rng(1))
    assert [r.age for r in results] == [1, 2]
    # 28 and 26 examples of the first two tasks are memorized; each third of the networks pairs them all
    assert [r.n_pairs for r in results] == [3 * (28 + 26), 3 * 28]
    for r in results:
        assert r.forgetting.value == pytest.approx(difference * r.age, abs=0.5)
        assert r.forgetting.low <= r.forgetting.value <= r.forgetting.high
        assert (r.forgetting.low > 0) == bool(difference)
        assert r.forgetting_others == pytest.approx(10 * r.age, abs=0.5)
        assert abs(r.initial.value) < 0.5


def test_pairs_are_the_closest_of_all_ways_to_pair():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random(4), rng.random(5)
        ways = [
            [(i, j) for i, j in enumerate(chosen) if abs(a[i] - b[j]) <= 0.2]
            for chosen in itertools.permutations(range(5), 4)
        ]
        best = min(ways, key=lambda pairs: (-len(pairs), sum(abs(a[i] - b[j]) for i, j in pairs)))
        rows, columns = closest(a, b, 0.2)
        assert len(rows) == len(best) and len(set(columns.tolist())) == len(columns)
        assert np.abs(a[rows] - b[columns]).max(initial=0) <= 0.2
        assert np.abs(a[rows] - b[columns]).sum() == pytest.approx(sum(abs(a[i] - b[j]) for i, j in best))


def test_the_networks_that_measure_do_not_form_the_pairs():
    outputs = planted(np.random.default_rng(0), 0.2)
    third = np.arange(40) % 3
    pairs = form_pairs(outputs, third == 0, third == 1, Matching())
    assert pairs.measuring.tolist() == np.flatnonzero(third == 2).tolist()
    changed = outputs.probabilities.copy()
    changed[:, third == 2] = 0.5  # what the measuring networks gave does not matter
    same = form_pairs(outputs._replace(probabilities=changed), third == 0, third == 1, Matching())
    assert same.memorized.tolist() == pairs.memorized.tolist()
    for a, b in zip(pairs.memorized, pairs.others, strict=True):
        assert outputs.labels[a] == outputs.labels[b] and a % 6 < 2 <= b % 6 and outputs.task[a] < 2
    assert len(set(pairs.others.tolist())) == len(pairs.others)


def test_pairs_are_as_well_known_though_either_side_falls_back_to_its_own_mean():
    """Networks differ by .3, more than examples do (.1): of 6 that saw one, the mean falls back by half.

    Pairs that are alike in that mean itself lie 14 points apart when others measure them, as the memorized
    fall back to .65 and the others to .85.
    """
    rng = np.random.default_rng(0)
    n, n_networks = 4000, 36
    task, memorized = np.repeat([0, 1], n // 2), np.arange(n) % 2 == 0
    member = rng.random((n_networks, n)) < 0.5
    level = np.where(memorized, 0.65, 0.85) + rng.normal(0, 0.1, n)
    seen = level + rng.normal(0, 0.3, member.shape)
    probabilities = np.where(memorized & ~member, seen - 0.6, seen)[None].repeat(2, 0)
    outputs = StreamOutputs(probabilities, member, task, np.zeros(n, dtype=np.int64))
    (result,) = matched_forgetting(outputs, Matching(n_bootstrap=2), rng)
    assert result.n_pairs > 500 and abs(result.initial.value) < 3


def test_what_to_expect_again_is_the_closest_monotone_function():
    first = np.array([0.1, 0.2, 0.3, 0.4, np.nan, *np.linspace(0.5, 0.9, 17)])
    again = np.array([0.2, 0.5, 0.3, np.nan, 0.9, *np.linspace(0.6, 0.8, 17)])
    expected = expected_again(first, again)
    assert expected[:3] == pytest.approx([0.2, 0.4, 0.4])  # .5 and .3 are in the wrong order: their mean
    assert expected[5:] == pytest.approx(again[5:])
    assert np.isnan(expected[3:5]).all()
    assert np.isnan(expected_again(first[:-1], again[:-1])).all()  # 19 examples are too few
    assert np.isnan(expected_again(first, np.full(22, np.nan))).all()


def test_an_example_that_three_groups_paired_counts_once_in_the_interval():
    """All of the spread is between examples, so the interval is that of their mean."""
    rng = np.random.default_rng(0)
    n, n_networks = 400, 30
    memorized = np.arange(n) % 2 == 0
    member = rng.random((n_networks, n)) < 0.5
    before = np.where(memorized & ~member, 0.3, 0.9)
    lost = np.where(memorized, rng.normal(0.3, 0.2, n), 0.1)
    probabilities = np.stack([before, before - lost * member])
    outputs = StreamOutputs(probabilities, member, np.zeros(n, np.int64), np.zeros(n, np.int64))
    (result,) = matched_forgetting(outputs, Matching(n_bootstrap=400), rng)
    assert result.n_pairs == 3 * n / 2
    width = (result.forgetting.high - result.forgetting.low) / 2
    assert width == pytest.approx(100 * 1.96 * lost[memorized].std() / np.sqrt(n / 2), rel=0.15)


def test_a_floor_has_no_pairs():
    outputs = planted(np.random.default_rng(0), 0.2)
    flat = outputs._replace(probabilities=np.zeros_like(outputs.probabilities))
    with pytest.raises(ValueError, match=r"no example above 0\.25"):
        matched_forgetting(flat, Matching(), np.random.default_rng(0))


def test_the_study_shows_both_views_and_says_where_there_are_no_pairs(tmp_path):
    outputs = planted(np.random.default_rng(0), 0.2)
    with np.errstate(invalid="ignore"):
        loss = -np.log(outputs.probabilities)
    flat = np.where(np.isnan(loss), np.nan, 50.0)  # networks that know nothing of earlier tasks
    np.savez(
        tmp_path / "stream.npz", member=outputs.member, task=outputs.task, labels=outputs.labels,
        task_loss_over_time=loss, loss_over_time=flat,
    )  # fmt: skip
    in_task, among_all = (
        stream_forgetting.compare(tmp_path / "stream.npz", view) for view in ("task-IL", "class-IL")
    )
    assert among_all == [] and [round(r.forgetting.value) for r in in_task] == [10, 20]
    rows = [stream_forgetting.Row("mnist", 0, "task-IL", 40, result) for result in in_task]
    rows.append(stream_forgetting.Row("mnist", 0, "class-IL", 40, None))
    lines = stream_forgetting.table(rows).splitlines()
    assert lines[-1] == "| mnist | 0 | class-IL | – | 0 | – | – | – | 40 |"
    left, right = stream_forgetting.figure(rows).axes
    (drawn,) = left.containers
    assert (
        drawn[0].get_ydata() == pytest.approx([10, 20], abs=0.5)
        and len(right.containers[0][0].get_xdata()) == 0
    )
