"""MNIST-360 against a retelling of the paper's description, sample by sample, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import engram
from engram.datasets import mnist_360, training_samples
from engram.datasets.rotation import turned
from engram.models.method import Method, check_scenario
from engram.utils.config import registry
from engram.utils.errors import UserError
from tests.unit.test_sources import MNIST_DIR, idx
from tests.unit.test_streams import build


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A set in MNIST's layout: 400 training and 120 test images of noise, every digit among them."""
    root = tmp_path_factory.mktemp("data")
    draws = np.random.RandomState(0)
    for prefix, n in (("train", 400), ("t10k", 120)):
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        labels = np.concatenate((np.arange(10), draws.randint(0, 10, n - 10))).astype(np.uint8)
        images = draws.randint(0, 256, (n, 28, 28)).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return root


def labels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 10, n)


def test_each_sample_comes_once_and_its_digit_turns_once_round():
    y = labels(3000)
    order, angles = mnist_360.arrange(y, 5)
    assert sorted(order) == np.flatnonzero(y < 9).tolist()  # a turned 9 would be a 6
    for digit in range(9):
        own = angles[y[order] == digit]
        since = (own - 60 * (digit - 1)) % 360
        assert np.allclose(since, 360 * np.arange(len(own)) / len(own))  # ever further, never twice the same


def test_pairs_come_three_times_round_and_are_mixed_evenly():
    y = labels(30_000, 1)
    order, _ = mnist_360.arrange(y, 0)
    shares = {d: [len(p) for p in np.array_split(np.arange((y == d).sum()), 6)] for d in range(9)}
    start = 0
    for _ in range(3):
        for pair in ((d, (d + 1) % 9) for d in range(9)):
            sizes = [shares[d].pop(0) for d in pair]
            window = y[order[start : start + sum(sizes)]]
            start += sum(sizes)
            for digit, size in zip(pair, sizes, strict=True):
                assert (window == digit).sum() == size
                met = np.cumsum(window == digit)  # after k samples, its share of them
                assert np.abs(met - np.arange(1, len(window) + 1) * size / len(window)).max() <= 1
    assert start == len(order)


def test_both_digits_of_a_pair_turn_together():
    """0 apart, which is a sixth of a turn behind where it comes first in a pair."""
    y = np.repeat(np.arange(9), 600)
    order, angles = mnist_360.arrange(y, 0)
    for i in range(1, 27):
        window = slice(200 * i, 200 * (i + 1))
        apart = [angles[window][y[order[window]] == digit] for digit in (i % 9, (i + 1) % 9)]
        gap = (apart[0] - apart[1] + 180) % 360 - 180
        assert np.allclose(np.abs(gap).round(9) % 60, 0) and len(set(gap.round(9))) == 1
        assert 0 in (i % 9, (i + 1) % 9) or np.allclose(gap, 0)


def test_the_seed_decides_which_sample_comes_when():
    y = labels(500)
    assert np.array_equal(mnist_360.arrange(y, 1)[0], mnist_360.arrange(y, 1)[0])
    assert not np.array_equal(mnist_360.arrange(y, 1)[0], mnist_360.arrange(y, 2)[0])


def test_batches_keep_the_order_and_show_the_turned_images(data):
    stream, _ = build("mnist-360", data, seed=3)
    plain, _ = build("seq-mnist", data, n_tasks=1)
    raw, y, _, index = plain.train(plain.tasks[0])
    assert index.tolist() == list(range(400))
    order, angles = mnist_360.arrange(y.numpy(), 3)
    task = stream.tasks[0]
    for epoch in (0, 1):
        batches = list(stream.batches(task, epoch, 16))
        assert torch.cat([batch.index for batch in batches]).tolist() == order.tolist()
    for row, (index, angle) in enumerate(zip(order, angles, strict=True)):
        expected = Image.fromarray(raw[index, 0].numpy()).rotate(angle)
        got = batches[row // 16]
        assert np.array_equal(got.x_raw[row % 16, 0].numpy(), np.asarray(expected))
        assert got.y[row % 16] == y[index]
    resumed = list(stream.batches(task, 0, 16, start=7))
    assert all(torch.equal(a.x, b.x) for a, b in zip(resumed, batches[7:], strict=True))


def test_the_test_digits_of_a_class_go_once_round(data):
    stream, _ = build("mnist-360", data)
    plain, _ = build("seq-mnist", data, n_tasks=1)
    test, original = stream.test(1), plain.test(1)
    assert set(test.y.tolist()) == set(range(9))
    for digit in range(9):
        images = original.x_raw[original.y == digit]
        angles = 360 * torch.arange(len(images), dtype=torch.float64) / len(images)
        assert torch.equal(test.x_raw[test.y == digit], turned(images, angles))


def test_validation_takes_its_images_from_the_training_set(data):
    stream, _ = build("mnist-360", data, validation=20)
    plain, _ = build("seq-mnist", data, n_tasks=1)
    everything, held = plain.train(plain.tasks[0]), stream.test(1)
    assert len(stream.tasks[0].train_index) + len(held.y) == int((everything.y < 9).sum())
    first = held.x_raw[held.y == 4][:1]  # turned by 0 degrees
    (place,) = (everything.x_raw == first).flatten(1).all(1).nonzero()
    assert everything.y[place] == 4 and everything.index[place] not in stream.tasks[0].train_index


@pytest.mark.parametrize("bound", ["joint", "cumulative"])
def test_the_bounds_shuffle(data, bound):
    stream, _ = build("mnist-360", data)
    assert stream.task_free and not build("seq-mnist", data)[0].task_free
    (task,) = getattr(stream, bound)()
    first = torch.cat([batch.index for batch in stream.batches(task, 0, 16)])
    assert not torch.equal(first, task.train_index)
    assert torch.equal(first.sort().values, task.train_index.sort().values)


def test_left_out_samples_leave_the_order_of_the_others(data):
    stream, _ = build("mnist-360", data)
    before = stream.tasks[0].train_index
    training_samples.exclude(stream, before[10:20])
    assert torch.equal(stream.tasks[0].train_index, torch.cat((before[:10], before[20:])))


@pytest.mark.parametrize(
    "flags",
    [
        {"n_tasks": 3},
        {"multi_head": True},
        {"scenario": "domain-il"},
        {"permute_classes": True},
        {"class_order": (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)},
    ],
)
def test_what_needs_tasks_is_refused(data, flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}.*without tasks; leave the flag out"):
        build("mnist-360", data, **flags)


@pytest.mark.parametrize("name", registry.names("models"))
def test_methods_that_need_boundaries_are_refused(data, name):
    stream, method = build("mnist-360", data)[0], registry.plugin_class(registry.load("models", name), Method)
    if method.needs_boundaries:
        with pytest.raises(UserError, match=f"--model {name} needs to know where tasks end"):
            check_scenario(method, name, stream)
    else:
        check_scenario(method, name, stream)


def test_a_run_ends_with_one_accuracy(data, tmp_path):
    flags = {"model": "er", "dataset": "mnist-360", "buffer_size": 60, "n_epochs": 2, "minibatch_size": 8}
    result = engram.train(**flags, data_dir=str(data), output_dir=str(tmp_path), disable_log=True)
    (accuracy,) = result.R[0]
    assert 0 <= accuracy == result.metrics["class_il"]["average_accuracy"] <= 1


@pytest.mark.skipif(MNIST_DIR is None, reason="the real MNIST is not here")
def test_the_real_set_has_54051_samples():
    stream, _ = build("mnist-360", MNIST_DIR)
    assert len(stream.tasks[0].train_index) == 54051 and len(stream.test(1).y) == 8991
