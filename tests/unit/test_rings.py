"""Rings: each group holds its own last samples, whatever the batches, and draws are uniform.

Statistical tests use fixed seeds; "false alarm" is the chance that another seed would fail a correct
implementation. RingMemory is tested with GEM.
"""

from collections import deque

import numpy as np
import pytest
import torch
from scipy import stats

from engram.utils.buffers.ring import KeyedRing, RingMemory, ranks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("per_group", [1, 3, 10])
@pytest.mark.parametrize("batch", [1, 6, 40])
def test_every_group_holds_its_last(per_group, batch):
    groups = torch.randint(4, (100,), generator=generator(1)) ** 2 % 5  # 0, 1, 4: unequal, some absent
    ring = KeyedRing("y", 5, per_group, generator(), "cpu")
    last = [deque(maxlen=per_group) for _ in range(5)]
    assert not ring and ring.stored() == {}
    for x, y in zip(torch.arange(100).split(batch), groups.split(batch), strict=True):
        ring.add(x=x, y=y)
        for value, group in zip(x.tolist(), y.tolist(), strict=True):
            last[group].append(value)
        stored = ring.stored()
        assert len(ring) == len(stored["x"]) == sum(map(len, last)) <= 5 * per_group
        for group in range(5):
            assert sorted(stored["x"][stored["y"] == group].tolist()) == sorted(last[group])
    assert torch.equal(ring.stored()["y"], groups[ring.stored()["x"]])


def test_no_slot_is_written_twice_by_one_batch():
    """Which of two writes would win is not defined on a GPU."""
    ring = KeyedRing("y", 3, 4, generator(), "cpu")
    slots, _ = ring._assign_slots(torch.randint(3, (50,), generator=generator(4)))
    kept = slots[slots < ring.size]
    assert len(kept) == len(kept.unique()) == 12


def test_draws_are_distinct_until_all_are_used():
    ring = KeyedRing("task_id", 3, 4, generator(), "cpu")
    ring.add(x=torch.arange(5), task_id=torch.tensor([0, 2, 2, 0, 2]))
    assert ring
    for n in (1, 4, 5):
        assert len(ring.sample(n)["x"].unique()) == n
    assert sorted(ring.sample(10)["x"].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_ring_of_one_slot_is_in_use_from_its_first_sample():
    ring = KeyedRing("y", 1, 1, generator(), "cpu")
    assert bool(ring) is False and len(ring) == 0
    for value in (3, 4):
        ring.add(x=torch.tensor([value]), y=torch.tensor([0]))
        assert bool(ring) is True and len(ring) == 1 and ring.stored()["x"].tolist() == [value]


def test_every_sample_held_is_as_likely_to_be_drawn():
    """Chi-square over 6 of 12 places in use; false alarm 1e-4."""
    ring = KeyedRing("y", 3, 4, generator(2), "cpu")
    ring.add(x=torch.arange(7), y=torch.tensor([0, 0, 1, 1, 1, 1, 1]))
    drawn = torch.cat([ring.sample(1)["x"] for _ in range(6000)])
    counts = np.bincount(drawn.numpy(), minlength=7)
    assert counts[2] == 0  # the oldest of class 1, overwritten within its own batch
    assert stats.chisquare(np.delete(counts, 2)).pvalue > 1e-4


def test_ranks_are_counted_one_by_one():
    y = torch.tensor([2, 0, 2, 2, 1, 0])
    rank, counts = ranks(y, 4)
    assert rank.tolist() == [0, 0, 1, 2, 0, 1] and counts.tolist() == [2, 1, 3, 0]


def test_a_restored_ring_continues_exactly():
    rings = [KeyedRing("y", 3, 2, generator(seed), "cpu") for seed in (0, 1)]
    rings[0].add(x=torch.arange(9), y=torch.arange(9) % 3)
    rings[1].load_state_dict(rings[0].state_dict())
    for ring in rings:
        ring.fields = {name: values.clone() for name, values in ring.fields.items()}
        ring.add(x=torch.arange(9, 13), y=torch.arange(4) % 2)
    assert torch.equal(rings[0].stored()["x"], rings[1].stored()["x"])
    assert torch.equal(rings[0].sample(4)["x"], rings[1].sample(4)["x"])


def test_a_ring_memory_draws_from_the_tasks_asked_for():
    """Chi-square over the 5 samples of two of three tasks; false alarm 1e-4."""
    ring = RingMemory(3, 3, generator(3), "cpu")
    for task, n in enumerate((4, 2, 2)):
        ring.add(task, x=10 * task + torch.arange(n))
    assert len(ring) == 7
    assert sorted(ring.sample(20, [0, 2])["x"].tolist()) == [1, 2, 3, 20, 21]
    assert set(ring.sample_by_task(1, 5)["x"].tolist()) == {10, 11}
    drawn = torch.cat([ring.sample(2, [0, 2])["x"] for _ in range(3000)])
    counts = np.bincount(drawn.numpy())[[1, 2, 3, 20, 21]]
    # two of five without replacement: variance p(1 − p) each with covariances, so the sum shrinks by 3/4
    statistic = ((counts - 1200) ** 2).sum() / 1200 / (1 - 1 / 4)
    assert statistic < stats.chi2.ppf(1 - 1e-4, 4)
