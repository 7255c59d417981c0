"""Reservoirs that choose their victims: probabilities, and equality with insertion one by one.

Statistical tests use fixed seeds; "false alarm" is the chance that another seed would fail a correct
implementation.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import Buffer, FIFOBuffer, UnlimitedBuffer
from engram.utils.buffers.weighted_reservoirs import (
    BalancedBuffer,
    EvictingBuffer,
    LossAwareBalancedBuffer,
    LossAwareBuffer,
    ProtectedBuffer,
    last_entry,
    pick,
)
from tests.pretended_device import PretendedDevice

SIZE, N, C = 8, 60, 3
KINDS = ["balanced", "protected", "loss aware", "loss aware balanced"]
PROTECTED = [1, 5]  # of the slots of a memory with protection


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(kind: str, seed: int = 0, device: str = "cpu"):
    if kind == "unlimited":
        return UnlimitedBuffer(generator(seed), device)
    without_labels = {"uniform": Buffer, "fifo": FIFOBuffer, "loss aware": LossAwareBuffer}
    if kind in without_labels:
        return without_labels[kind](SIZE, generator(seed), device)
    classes = {
        "balanced": BalancedBuffer,
        "protected": ProtectedBuffer,
        "loss aware balanced": LossAwareBalancedBuffer,
    }
    return classes[kind](SIZE, C, generator(seed), device)


def stream(seed: int = 3) -> dict[str, torch.Tensor]:
    y = torch.randint(C, (N,), generator=generator(seed))
    return {"x": torch.arange(N), "y": y, "score": torch.rand(N, generator=generator(seed + 1))}


def protect(buffer) -> None:
    """Mark the samples in the slots `PROTECTED` of a memory that has such marks."""
    if isinstance(buffer, ProtectedBuffer):
        buffer.replace(torch.tensor(PROTECTED), protected=torch.ones(len(PROTECTED), dtype=torch.bool))


def naive_weights(kind: str, y: list[int], loss: list[float]) -> list[float]:
    """Chances of eviction, written out."""
    if kind == "protected":
        free = [label for slot, label in enumerate(y) if slot not in PROTECTED]
        crowded = max(range(C), key=free.count)
        return [float(c == crowded and slot not in PROTECTED) for slot, c in enumerate(y)]
    sizes = [y.count(c) for c in y]
    if kind == "balanced":
        crowded = [y.count(c) for c in range(C)].index(max(sizes))
        return [float(c == crowded) for c in y]
    score = [-v for v in loss]
    if kind == "loss aware balanced":
        mean_size, mean_loss = np.mean(sizes), np.mean(np.abs(loss))
        score = [s / mean_size - v / mean_loss for s, v in zip(sizes, loss, strict=True)]
    return [s - min(score) for s in score]


def naive_buffer(kind: str, samples: dict, draws: list[float], chances: list[float]) -> list[int]:
    """One sample at a time: accepted as in a reservoir, the victim by inversion of the cumulated weights."""
    kept, left = [], iter(chances)
    fields = [samples[name].tolist() for name in ("y", "score")]
    for k in range(N):
        if k < SIZE:
            kept.append(k)
        elif int(draws[k] * (k + 1)) < SIZE:
            weights = np.cumsum(naive_weights(kind, *([values[i] for i in kept] for values in fields)))
            kept[int((weights > next(left) * weights[-1]).argmax())] = k
    return kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7, 52])
def test_batches_leave_what_one_by_one_insertion_leaves(kind, batch):
    """The memory is full after a first batch; some samples are protected then."""
    samples, buffer, source = stream(), build(kind, 5), generator(5)
    draws, chances = torch.rand(SIZE, generator=source, dtype=torch.float64).tolist(), []
    buffer.add(**{name: values[:SIZE] for name, values in samples.items()})
    protect(buffer)
    for start in range(SIZE, N, batch):
        n = min(batch, N - start)
        draws += torch.rand(n, generator=source, dtype=torch.float64).tolist()
        entering = sum(k >= SIZE and int(draws[k] * (k + 1)) < SIZE for k in range(start, start + n))
        chances += torch.rand(entering, generator=source).tolist() if entering else []
        buffer.add(**{name: values[start : start + n] for name, values in samples.items()})
    expected = naive_buffer(kind, samples, draws, chances)
    stored = buffer.stored()
    assert stored["x"].tolist() == expected
    assert torch.equal(stored["y"], samples["y"][expected])
    assert torch.equal(stored["score"], samples["score"][expected])


def test_samples_that_are_protected_are_never_evicted_nor_counted():
    """Class 0 has three samples and class 1 two, but two of class 0 are protected."""
    buffer = ProtectedBuffer(5, 2, generator(), "cpu")
    buffer.add(x=torch.arange(5), y=torch.tensor([0, 0, 0, 1, 1]))
    buffer.replace(torch.tensor([0, 2]), protected=torch.tensor([True, True]))
    assert buffer.members == [[1], [3, 4]]
    assert [buffer._evict(0.9), buffer._evict(0.0)] == [4, 1]  # one each is a tie: the lowest label wins


def test_the_last_slot_is_given_up_where_all_samples_are_protected():
    buffer = ProtectedBuffer(3, 2, generator(), "cpu")
    buffer.add(x=torch.arange(3), y=torch.tensor([0, 0, 1]))
    buffer.replace(torch.arange(3), protected=torch.ones(3, dtype=torch.bool))
    assert buffer._evict(0.5) == 2


@pytest.mark.parametrize("kind", ["balanced", "protected"])
def test_the_lists_of_members_follow_what_is_stored(kind):
    """After batches, rewritten slots, a saved state and a new filling they are as the labels say."""
    buffer, samples = build(kind), stream()
    labels = samples["y"].clone()

    def check(memory) -> None:
        y, evictable = memory.stored()["y"].tolist(), memory.evictable().tolist()
        expected = [[s for s in range(len(memory)) if y[s] == c and evictable[s]] for c in range(C)]
        assert memory.members == expected

    for batch in zip(samples["x"].split(13), labels.split(13), strict=True):
        buffer.add(x=batch[0], y=batch[1])
        protect(buffer)
        check(buffer)
    buffer.replace(torch.tensor([0, 3]), y=torch.tensor([2, 2]))
    check(buffer)
    restored = build(kind, 1)
    restored.load_state_dict(buffer.state_dict())
    check(restored)
    assert restored.members == buffer.members
    buffer.fill(**{name: values[:5] for name, values in buffer.stored().items()})
    check(buffer)


@pytest.mark.parametrize("kind", ["uniform", "fifo", "unlimited", *KINDS])
def test_a_memory_on_the_device_holds_what_one_on_the_host_does(kind):
    """There all rows of a batch are written, those that do not enter to a slot that nobody reads."""

    def filled(device: str) -> dict[str, torch.Tensor]:
        buffer, samples = build(kind, device=device), stream()
        for start in range(0, N, 13):
            rows = {name: values[start : start + 13].to(device) for name, values in samples.items()}
            buffer.add(image=rows["x"].view(-1, 1) + torch.arange(16, device=device), **rows)
        return {name: values.cpu() for name, values in buffer.stored().items()}

    with PretendedDevice():
        on_device = filled("cuda")
    for name, values in filled("cpu").items():
        assert on_device[name].tolist() == values.tolist()


def test_labels_in_host_memory_are_taken_from_there():
    """The device is not asked: what lies there may differ, and does here."""
    buffer = build("balanced")
    buffer.add(y_on_host=torch.tensor([0, 1, 1]), x=torch.arange(3), y=torch.zeros(3, dtype=torch.long))
    assert buffer.members == [[0], [1, 2], []]


def test_a_reservoir_without_weights_is_refused():
    with pytest.raises(NotImplementedError):
        EvictingBuffer(SIZE, generator(), "cpu").weights()


def test_well_learned_samples_are_evicted_in_proportion():
    """Chi-square over 5 slots with losses 0, 1, 2, 3, 4: chances 4 : 3 : 2 : 1 : 0; false alarm 1e-4."""
    weights = selection.loss_aware(torch.arange(5.0))
    assert weights.tolist() == [4, 3, 2, 1, 0]
    victims = [pick(weights, chance).item() for chance in torch.rand(8000, generator=generator()).split(1)]
    counts = np.bincount(victims, minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], 8000 * np.array([4, 3, 2, 1]) / 10).pvalue > 1e-4


def test_equal_losses_are_evicted_uniformly():
    assert selection.loss_aware(torch.full((4,), 2.5)).tolist() == [1, 1, 1, 1]
    same = selection.loss_aware_balanced(torch.ones(4), torch.tensor([0, 1, 0, 1]), 3)
    assert same.tolist() == [1, 1, 1, 1]


def test_loss_aware_balanced_goes_by_class_size_alone_when_all_losses_are_zero():
    """Sizes 3, 3, 3, 1 over their mean 2.5 are 1.2, 1.2, 1.2, 0.4; the smallest becomes 0."""
    weights = selection.loss_aware_balanced(torch.zeros(4), torch.tensor([0, 0, 0, 1]), 2)
    assert weights.tolist() == pytest.approx([0.8, 0.8, 0.8, 0])


def test_loss_aware_balanced_weighs_both_terms_alike():
    """Classes of 3 and 1, losses 1 and 3: s = 3 / 2.5 − 1 / 1.5 and 1 / 2.5 − 3 / 1.5."""
    weights = selection.loss_aware_balanced(torch.tensor([1.0, 1.0, 1.0, 3.0]), torch.tensor([0, 0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([32.0, 32.0, 32.0, 0.0]) / 15)


def test_pick_never_takes_a_slot_without_weight():
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
    chances = torch.tensor([0.0, 0.6, 2 / 3 - 1e-6, 0.67, 1 - 2**-24])
    assert [pick(weights, c).item() for c in chances.split(1)] == [1, 1, 1, 3, 3]


def test_pick_takes_the_last_slot_where_none_has_weight():
    assert pick(torch.zeros(3), torch.tensor([0.5])).tolist() == [2]


def test_of_several_rows_for_one_slot_the_last_is_written_everywhere():
    rows = last_entry(torch.tensor([4, 1, 4, 4, 2]), torch.tensor([10, 11, 12, 13, 14]))
    assert rows.tolist() == [13, 11, 13, 13, 14]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_buffer_continues_exactly(kind):
    samples, first, second = stream(), build(kind, 0), build(kind, 1)
    half, rest = ({n: v[part] for n, v in samples.items()} for part in (slice(0, 30), slice(30, None)))
    first.add(**half)
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.replace(torch.tensor([2, 5]), score=torch.tensor([9.0, 0.0]))
        each.add(**rest)
    assert first.stored()["x"].tolist() == second.stored()["x"].tolist()
    assert torch.equal(first.sample(3)["x"], second.sample(3)["x"])
