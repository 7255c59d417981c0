"""The study of task orders: its table and the interval of its difference."""

import numpy as np
import pytest

from engram.scripts.studies import mas_orders


def accuracies(spread: float, seed: int, n_seeds: int = 40) -> np.ndarray:
    """(3 orders, seeds) whose orders lie `spread` apart, each seed with noise of 1 %."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (3, n_seeds))
    return 0.9 + spread * np.array([[-1], [0], [1]]) + noise


def test_the_spread_of_the_means_is_told_with_its_interval():
    found = {False: accuracies(0.05, 1), True: accuracies(0.01, 2)}
    low, high = mas_orders.interval(found)
    assert low < 0.04 < high and high - low < 4 * 2 * 0.01 / np.sqrt(40)
    text = mas_orders.table(found, {False: "0.01", True: "0.1"})
    row = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert row[:2] == ["sum", "0.01"]
    assert float(row[-1]) == pytest.approx(100 * found[False].mean(1).std(ddof=1), abs=0.005)
    assert f"smaller by {100 * low:.2f} to {100 * high:.2f} points (95 %)" in text


def test_no_difference_is_inside_the_interval():
    found = {False: accuracies(0.02, 3), True: accuracies(0.02, 4)}
    low, high = mas_orders.interval(found)
    assert low < 0 < high


def test_one_seed_has_no_interval():
    found = {way: accuracies(0.02, 5, n_seeds=1) for way in (False, True)}
    assert "95 %" not in mas_orders.table(found, {False: "1", True: "1"})
