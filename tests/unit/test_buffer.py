"""Buffers: who stays, with what probability, and that batches change nothing.

Statistical tests use fixed seeds; "false alarm" is the chance that another seed would fail a correct
implementation.
"""

import itertools
from bisect import insort
from collections import deque

import numpy as np
import pytest
import torch
from scipy import stats

from engram.utils.buffers.reservoir import (
    Buffer,
    FIFOBuffer,
    UnlimitedBuffer,
    copy_rows,
    distinct,
    rows_where,
)
from engram.utils.buffers.weighted_reservoirs import BalancedBuffer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(size: int, n: int, batch: int, seed: int = 0) -> Buffer:
    """A reservoir that was offered 0 .. n − 1 in batches."""
    buffer = Buffer(size, generator(seed), "cpu")
    for values in torch.arange(n).split(batch):
        buffer.add(x=values, y=values % 3)
    return buffer


def naive_reservoir(size: int, n: int, draws: list[float]) -> list[int]:
    """Vitter's algorithm R with the k-th sample's slot being ⌊draw · k⌋."""
    kept = []
    for k in range(n):
        if k < size:
            kept.append(k)
        elif (slot := int(draws[k] * (k + 1))) < size:
            kept[slot] = k
    return kept


def naive_balanced(size: int, y: list[int], draws: list[float], chances: list[float], n_classes: int) -> list:
    """Accepted as in a reservoir; the place is a random one of the most populated class."""
    kept: list[int] = []
    left = iter(chances)
    for k in range(len(y)):
        if k < size:
            kept.append(k)
        elif int(draws[k] * (k + 1)) < size:
            counts = [sum(y[i] == c for i in kept) for c in range(n_classes)]
            members = [slot for slot, i in enumerate(kept) if y[i] == counts.index(max(counts))]
            kept[members[int(next(left) * len(members))]] = k
    return kept


# --- who stays ----------------------------------------------------------------------------------


def test_every_sample_is_kept_with_the_same_probability():
    """Chi-square over 40 samples and 4,000 runs; false alarm 1e-4."""
    size, n, runs = 8, 40, 4000
    counts = np.zeros(n)
    for seed in range(runs):
        kept = filled(size, n, batch=7, seed=seed).stored()["x"]
        assert len(kept.unique()) == size
        counts[kept.numpy()] += 1
    expected = runs * size / n
    # samples of one run exclude each other, so the statistic is Σ(...)²/(p(1−p)runs)·(n−1)/n ~ χ²(n−1)
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - size / n)) * (n - 1) / n
    assert statistic < stats.chi2.ppf(1 - 1e-4, n - 1)


@pytest.mark.parametrize(("rule", "extra"), [("uniform", 0), ("original", 1)])
def test_the_kth_sample_is_accepted_with_probability_size_over_k(rule, extra):
    """Not size / (k + 1), the rule of MER's code; binomial z-test, false alarm 1e-5, power > 0.99."""
    size, k, runs = 5, 6, 20_000
    accepted = 0
    buffer = Buffer(size, generator(1), "cpu", rule)
    buffer.add(x=torch.zeros(size))
    for _ in range(runs):
        buffer.n_seen = k - 1
        accepted += len(buffer._assign_slots(1)[0])
    chance = size / (k + extra)
    deviation = abs(accepted / runs - chance) / np.sqrt(chance * (1 - chance) / runs)
    assert deviation < stats.norm.ppf(1 - 0.5e-5)


def test_the_original_rule_is_mers_codes():
    """P(kept) of the k-th of n: entering (1, then M/(k+1)) times surviving each later entry (1 − 1/(j+1))."""
    size, n, runs = 4, 16, 6000
    counts = np.zeros(n)
    for seed in range(runs):
        buffer = Buffer(size, generator(seed), "cpu", "original")
        for values in torch.arange(n).split(5):
            buffer.add(x=values)
        counts[buffer.stored()["x"].numpy()] += 1
    chances = np.array(
        [
            (1 if k <= size else size / (k + 1))
            * np.prod([1 - 1 / (j + 1) for j in range(max(k, size) + 1, n + 1)])
            for k in range(1, n + 1)
        ]
    )
    np.testing.assert_allclose(chances.sum(), size)
    deviations = np.abs(counts / runs - chances) / np.sqrt(chances * (1 - chances) / runs)
    assert (deviations < stats.norm.ppf(1 - 1e-5)).all()  # false alarm 3e-4
    assert chances[0] > 1.2 * chances[-1]  # uneven: the uniform rule would fail above


def test_the_default_rule_is_uniform():
    draws = torch.rand(60, generator=generator(3), dtype=torch.float64).tolist()
    buffer = Buffer(9, generator(3), "cpu")
    buffer.add(x=torch.arange(60))
    assert buffer.stored()["x"].tolist() == naive_reservoir(9, 60, draws)


def test_every_slot_is_as_likely_to_be_overwritten():
    """Chi-square over 6 slots; false alarm 1e-4."""
    buffer = Buffer(6, generator(2), "cpu")
    buffer.n_seen = 6
    slots = []
    for _ in range(6000):
        buffer.n_seen = 11
        slots += buffer._assign_slots(1)[1]
    assert stats.chisquare(np.bincount(slots, minlength=6)).pvalue > 1e-4


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 100])
def test_batches_leave_what_one_by_one_insertion_leaves(batch):
    draws = torch.rand(100, generator=generator(3), dtype=torch.float64).tolist()
    expected = naive_reservoir(9, 100, draws)
    assert filled(9, 100, batch, seed=3).stored()["x"].tolist() == expected


def test_all_fields_of_a_sample_stay_together():
    stored = filled(9, 100, 13).stored()
    assert torch.equal(stored["y"], stored["x"] % 3)


def test_balanced_batch_leaves_what_one_by_one_insertion_leaves():
    y = torch.randint(4, (120,), generator=generator(4)) ** 2 % 4  # classes of unequal size
    fresh = generator(5)
    buffer = BalancedBuffer(10, 4, fresh, "cpu")
    buffer.add(x=torch.arange(120), y=y)
    same = generator(5)
    draws = torch.rand(120, generator=same, dtype=torch.float64)
    positions = torch.arange(120)
    accepted = ((draws * (positions + 1)).long() < 10)[10:].sum()
    chances = torch.rand(int(accepted), generator=same).tolist()
    expected = naive_balanced(10, y.tolist(), draws.tolist(), chances, 4)
    assert buffer.stored()["x"].tolist() == expected
    assert torch.equal(buffer.stored()["y"], y[expected])


def test_balanced_buffer_takes_from_the_crowded_class_only():
    buffer = BalancedBuffer(12, 3, generator(6), "cpu")
    buffer.add(x=torch.arange(12), y=torch.zeros(12, dtype=torch.long))
    for step in range(400):
        before = buffer.stored()["y"].bincount(minlength=3)
        buffer.add(x=torch.tensor([step]), y=torch.tensor([1 + step % 2]))
        lost = before - buffer.stored()["y"].bincount(minlength=3)
        for label in torch.nonzero(lost > 0).view(-1):
            assert before[label] == before.max()
    assert buffer.stored()["y"].bincount(minlength=3).max() <= 5


def test_balanced_buffer_evicts_uniformly_within_the_class():
    """Chi-square over the 5 members of the crowded class; false alarm 1e-4."""
    buffer = BalancedBuffer(8, 2, generator(7), "cpu")
    buffer.add(x=torch.arange(8), y=torch.tensor([0, 1, 1, 0, 1, 1, 0, 1]))
    evicted = []
    for chance in torch.rand(5000, generator=generator(8)).tolist():
        evicted.append(buffer._evict(chance))
        insort(buffer.members[1], evicted[-1])  # and put it back
    counts = np.bincount(evicted, minlength=8)
    assert counts[[0, 3, 6]].sum() == 0
    assert stats.chisquare(counts[[1, 2, 4, 5, 7]]).pvalue > 1e-4


# --- drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("population", "n"), [(5, 2), (5, 3), (6, 1)])
def test_distinct_is_uniform_over_ordered_draws(population, n):
    """Both branches; chi-square over all ordered selections, false alarm 1e-4 each."""
    draws, source = 6000, generator(9)
    numbers = {p: i for i, p in enumerate(itertools.permutations(range(population), n))}
    drawn = [numbers[tuple(distinct(population, n, source).tolist())] for _ in range(draws)]
    assert stats.chisquare(np.bincount(drawn, minlength=len(numbers))).pvalue > 1e-4


@pytest.mark.parametrize(("population", "n"), [(1000, 30), (10, 10), (3, 0), (1, 1)])
def test_distinct_is_distinct(population, n):
    rows = distinct(population, n, generator())
    assert len(rows) == len(rows.unique()) == n
    assert ((rows >= 0) & (rows < population)).all()


def test_distinct_permutes_the_population_only_when_n_squared_exceeds_it():
    """Two of four and three of a hundred are drawn directly, four of ten from a permutation; none of none."""
    for population, n in ((4, 2), (100, 3)):
        direct = torch.randint(population, (n,), generator=generator())
        assert len(direct.unique()) == n
        assert torch.equal(distinct(population, n, generator()), direct)
    permuted = torch.randperm(10, generator=generator())
    assert torch.equal(distinct(10, 4, generator()), permuted[:4])
    assert distinct(0, 0, generator()).tolist() == []


def test_sample_gives_what_there_is():
    buffer = filled(9, 4, 4)
    assert sorted(buffer.sample(20)["x"].tolist()) == [0, 1, 2, 3]
    assert len(buffer.sample(2)["x"]) == 2


def test_drawing_with_replacement_is_uniform_and_independent():
    """Chi-square over pairs of consecutive draws; false alarm 1e-4."""
    rows = filled(4, 4, 4).sample_with_replacement(20_000)["x"].view(-1, 2)
    pairs = (rows[:, 0] * 4 + rows[:, 1]).bincount(minlength=16)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-4


# --- size and state -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 64])
@pytest.mark.parametrize("kind", ["reservoir", "balanced"])
def test_never_over_size(kind, size):
    buffer = Buffer(size, generator(), "cpu")
    if kind == "balanced":
        buffer = BalancedBuffer(size, 3, generator(), "cpu")
    for n_seen, values in enumerate(torch.arange(100).split(9), 1):
        buffer.add(x=values, y=values % 3)
        assert len(buffer) == len(buffer.stored()["x"]) == min(size, 9 * n_seen, 100)
    assert len(buffer.stored()["x"].unique()) == min(size, 100)


@pytest.mark.parametrize("kind", ["reservoir", "balanced"])
def test_size_zero_keeps_and_draws_nothing(kind):
    source = generator()
    buffer = Buffer(0, source, "cpu") if kind == "reservoir" else BalancedBuffer(0, 3, source, "cpu")
    buffer.add(x=torch.arange(9), y=torch.arange(9) % 3)
    assert len(buffer) == 0 and buffer.stored() == {}
    assert torch.equal(source.get_state(), generator().get_state())


def test_what_is_stored_is_a_copy():
    buffer, values = Buffer(4, generator(), "cpu"), torch.arange(4)
    buffer.add(x=values)
    values.zero_()
    assert buffer.stored()["x"].tolist() == [0, 1, 2, 3]


def test_replace_overwrites_the_slots_given():
    buffer = filled(5, 5, 5)
    buffer.replace(torch.tensor([1, 4]), x=torch.tensor([70, 80]), y=torch.tensor([7, 8]))
    assert buffer.stored()["x"].tolist() == [0, 70, 2, 3, 80]
    assert buffer.stored()["y"].tolist() == [0, 7, 2, 0, 8]


@pytest.mark.parametrize("kind", ["reservoir", "balanced"])
def test_a_restored_buffer_continues_exactly(kind):
    def build(seed: int) -> Buffer:
        if kind == "reservoir":
            return Buffer(7, generator(seed), "cpu")
        return BalancedBuffer(7, 3, generator(seed), "cpu")

    def go_on(buffer: Buffer) -> list:
        for values in torch.arange(50, 90).split(6):
            buffer.add(x=values, y=values % 3)
        return [buffer.stored()["x"].tolist(), buffer.sample(3)["x"].tolist()]

    first, second = build(0), build(1)
    first.add(x=torch.arange(50), y=torch.arange(50) % 3)
    saved = {k: v for k, v in first.state_dict().items()}
    saved["fields"] = {k: v.clone() for k, v in saved["fields"].items()}
    expected = go_on(first)
    second.load_state_dict(saved)
    assert go_on(second) == expected


# --- first in first out, unlimited, exactly these -------------------------------------------------


@pytest.mark.parametrize(("size", "batch"), [(1, 3), (7, 3), (7, 10), (40, 3)])
def test_fifo_holds_the_last(size, batch):
    buffer, last = FIFOBuffer(size, generator(), "cpu"), deque(maxlen=size)
    for values in torch.arange(31).split(batch):
        buffer.add(x=values, y=-values)
        last.extend(values.tolist())
        assert sorted(buffer.stored()["x"].tolist()) == sorted(last)
        assert torch.equal(buffer.stored()["y"], -buffer.stored()["x"])


def test_unlimited_holds_everything_in_order_and_survives_saving():
    buffer, restored = (UnlimitedBuffer(generator(s), "cpu") for s in (0, 1))
    assert not buffer and buffer.stored() == {}
    for start in range(0, 50, 7):
        buffer.add(x=torch.arange(start, start + 7), image=torch.full((7, 3), start))
    assert buffer.stored()["x"].tolist() == list(range(56)) and buffer.size < 2 * 56
    restored.load_state_dict(buffer.state_dict())
    for each in (buffer, restored):
        each.add(x=torch.arange(56, 500), image=torch.full((444, 3), 9))
        assert each.stored()["x"].tolist() == list(range(500)) and len(each) == 500
        assert each.stored()["image"][:, 0].tolist() == [i // 7 * 7 for i in range(56)] + 444 * [9]
    assert torch.equal(buffer.sample(5)["x"], restored.sample(5)["x"])


def test_unlimited_doubles_its_slots_or_takes_what_a_larger_batch_needs():
    """Three samples, then one: 2 · 3 slots. Two more just fit; ten more need 16, more than 2 · 6."""
    buffer, restored = (UnlimitedBuffer(generator(), "cpu") for _ in range(2))
    sizes = []
    for n in (3, 1, 2, 10):
        buffer.add(x=torch.arange(n), image=torch.zeros(n, 2))
        sizes.append((buffer.size, *(len(values) for values in buffer.fields.values())))
    assert sizes == [(3, 3, 3), (6, 6, 6), (6, 6, 6), (16, 16, 16)]
    restored.load_state_dict(buffer.state_dict())
    assert restored.size == 16 and len(restored) == 16


def test_fill_holds_exactly_these():
    buffer = filled(9, 100, 13)
    buffer.fill(x=torch.tensor([5, 6, 7]), y=torch.tensor([1, 1, 0]))
    assert len(buffer) == 3 and buffer.stored()["x"].tolist() == [5, 6, 7]
    buffer.add(x=torch.tensor([8]), y=torch.tensor([2]))
    assert buffer.stored()["x"].tolist() == [5, 6, 7, 8] and buffer.stored()["y"].tolist() == [1, 1, 0, 2]


def test_fill_refuses_more_than_there_is_room_for():
    buffer = Buffer(3, generator(), "cpu")
    with pytest.raises(AssertionError, match="4 samples"):
        buffer.fill(x=torch.arange(4))
    buffer.fill(x=torch.arange(3))
    assert buffer.stored()["x"].tolist() == [0, 1, 2]


def test_an_unknown_rule_is_refused():
    with pytest.raises(AssertionError, match="orginal"):
        Buffer(3, generator(), "cpu", "orginal")


# --- by task, and rows where a mask holds ---------------------------------------------------------


def test_sample_by_task_gives_the_tasks_own_distinct_samples():
    buffer = Buffer(12, generator(), "cpu")
    buffer.add(x=torch.arange(12), task_id=torch.arange(12) % 3)
    for n in (1, 3, 4):
        found = buffer.sample_by_task(1, n)
        assert (found["task_id"] == 1).all() and len(found["x"].unique()) == n
    assert sorted(buffer.sample_by_task(2, 10)["x"].tolist())[::3] == [2, 5, 8, 11]  # 3, 3, 2, 2 of each


def test_rows_where_is_uniform_over_ordered_draws():
    """Chi-square over the 12 ordered pairs of 4 positions among 9; false alarm 1e-4."""
    mask, source = torch.zeros(9, dtype=torch.bool), generator(10)
    mask[[1, 4, 5, 8]] = True
    numbers = {p: i for i, p in enumerate(itertools.permutations([1, 4, 5, 8], 2))}
    drawn = [numbers[tuple(rows_where(mask, 2, source).tolist())] for _ in range(6000)]
    assert stats.chisquare(np.bincount(drawn, minlength=12)).pvalue > 1e-4


@pytest.mark.parametrize("n", [0, 1, 3, 12])
def test_rows_where_the_mask_is_empty_is_one_valid_position(n):
    """Nothing may be read from the device, so there is no error: any position, as often as asked for."""
    rows = rows_where(torch.zeros(5, dtype=torch.bool), n, generator())
    assert rows.shape == (n,) and rows.dtype == torch.long
    assert len(rows.unique()) <= 1 and all(0 <= row < 5 for row in rows.tolist())


@pytest.mark.parametrize("shape", [(), (3,), (4,), (15,), (16,), (17,), (2, 8), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_copy_rows_is_index_assignment(shape, dtype):
    draws = generator(11)
    target, rows = ((torch.randint(0, 200, (n, *shape), generator=draws)).to(dtype) for n in (9, 4))
    slots, expected = torch.tensor([7, 0, 3, 8]), target.clone()
    expected[slots] = rows
    copy_rows(target, slots, rows)
    assert torch.equal(target, expected)
