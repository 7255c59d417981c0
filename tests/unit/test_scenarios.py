"""Scenarios: splits are disjoint, complete and those of the published code."""

import numpy as np
import pytest

from engram.datasets import scenarios
from engram.utils.errors import UserError


def test_classes_get_the_labels_that_the_published_code_gives_them():
    order = scenarios.class_order(10, 42, permute=True)
    # there: targets = RandomState(seed).permutation(classes)[targets], and task 0 has labels 0 and 1
    labels = [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]
    assert scenarios.relabel(np.arange(10), order).tolist() == labels
    assert order[:2].tolist() == [labels.index(0), labels.index(1)] == [3, 1]
    assert scenarios.class_order(5, 42, permute=False).tolist() == [0, 1, 2, 3, 4]


def test_drawing_an_order_leaves_numpys_global_generator_alone():
    before = np.random.get_state()[1].copy()
    scenarios.class_order(100, 3, permute=True)
    scenarios.hold_out(np.arange(100) % 5, 20, 0)
    assert np.array_equal(before, np.random.get_state()[1])


def test_an_order_of_ones_own():
    assert scenarios.class_order(3, 0, False, (1, 2, 0)).tolist() == [1, 2, 0]
    for wrong in ((1, 2), (1, 2, 2), (1, 2, 3), (0, 1, 2, 3)):
        given = ",".join(map(str, wrong))
        with pytest.raises(
            UserError, match=f"--class_order {given}: name each of the 3 classes, 0 to 2, once"
        ):
            scenarios.class_order(3, 0, False, wrong)


@pytest.mark.parametrize("seed", range(5))
def test_relabel_is_the_inverse_of_the_order(seed):
    order = scenarios.class_order(7, seed, permute=True)
    y = np.random.RandomState(seed).randint(0, 7, 50)
    new = scenarios.relabel(y, order)
    assert np.array_equal(order[new], y)
    assert scenarios.relabel(order, order).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("n_classes", "n_tasks", "sizes"),
    [(10, 5, [2] * 5), (10, 3, [4, 3, 3]), (7, 7, [1] * 7), (100, 8, [13] * 4 + [12] * 4), (4, 1, [4])],
)
def test_classes_are_split_into_consecutive_runs(n_classes, n_tasks, sizes):
    split = scenarios.split_classes(n_classes, n_tasks)
    assert [len(part) for part in split] == sizes
    assert [c for part in split for c in part] == list(range(n_classes))
    assert all(type(c) is int for part in split for c in part)


@pytest.mark.parametrize("n_tasks", [0, 11])
def test_an_impossible_number_of_tasks_is_refused(n_tasks):
    with pytest.raises(UserError, match=f"--n_tasks {n_tasks}: 10 classes can be split into 1 to 10 tasks"):
        scenarios.split_classes(10, n_tasks)


def test_positions_of_the_tasks_are_disjoint_and_complete():
    y = np.random.RandomState(0).randint(0, 10, 1000)
    positions = [scenarios.positions_of(y, part) for part in scenarios.split_classes(10, 4)]
    assert np.array_equal(np.sort(np.concatenate(positions)), np.arange(1000))
    for found, part in zip(positions, scenarios.split_classes(10, 4), strict=True):
        assert found.tolist() == [i for i in range(1000) if y[i] in part]


@pytest.mark.parametrize("percent", [5.0, 10.0, 33.0])
def test_hold_out_takes_its_share_of_every_class(percent):
    y = np.repeat(np.arange(6), [200, 100, 400, 60, 200, 40])
    np.random.RandomState(0).shuffle(y)
    kept, held = scenarios.hold_out(y, percent, seed=1)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(1000))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    shares = np.bincount(y[held]) - percent / 100 * np.bincount(y)
    assert np.abs(shares).max() < 1
    assert len(held) == round(10 * percent)


def test_hold_out_depends_on_the_seed_alone():
    y = np.arange(300) % 3
    assert np.array_equal(scenarios.hold_out(y, 20, 0)[1], scenarios.hold_out(y, 20, 0)[1])
    assert not np.array_equal(scenarios.hold_out(y, 20, 0)[1], scenarios.hold_out(y, 20, 1)[1])


@pytest.mark.parametrize("percent", [2.0, 5.0, 97.0])
def test_a_rare_class_has_a_sample_on_both_sides(percent):
    y = np.repeat(np.arange(4), [300, 300, 50, 3])
    for seed in range(5):
        training, held_out = scenarios.hold_out(y, percent, seed)
        assert set(y[training]) == set(y[held_out]) == {0, 1, 2, 3}
        assert sorted([*training, *held_out]) == list(range(653))
        assert (np.diff(training) > 0).all() and (np.diff(held_out) > 0).all()
        assert abs(len(held_out) - 6.53 * percent) < 3


def test_a_class_of_one_sample_cannot_be_held_out():
    with pytest.raises(ValueError, match="only 1 member"):
        scenarios.hold_out(np.array([0] * 50 + [1]), 10, 0)
