"""Benchmark: what a method sees of the stream, sample by sample."""

import numpy as np
import pytest
import torch

from engram.datasets import benchmark as module
from engram.datasets import scenarios
from engram.utils.errors import UserError
from tests.conftest import synthetic_source, tiny_benchmark, tiny_config


@pytest.fixture(params=[1 << 20, 4 * 36 * 8])
def blocks(request, monkeypatch):
    """Augmentation in one block, or in blocks of two batches of four."""
    monkeypatch.setattr(module, "BLOCK_BYTES", {"cpu": request.param})


def make(scenario: str = "class-il", **flags):
    return tiny_benchmark(tiny_config(**flags), scenario)


def stacked(batches, field: str) -> torch.Tensor:
    return torch.cat([getattr(batch, field) for batch in batches])


@pytest.mark.parametrize("permute", [False, True])
def test_the_tasks_share_out_classes_and_samples(permute):
    stream, source = make(permute_classes=permute, seed=5), synthetic_source()
    order = np.argsort(np.random.RandomState(5).permutation(6)) if permute else np.arange(6)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert stream.class_names == [f"class {c}" for c in order]
    for split, labels in (("train", source.train_y), ("test", source.test_y)):
        positions = [getattr(task, f"{split}_index") for task in stream.tasks]
        assert torch.cat(positions).sort().values.tolist() == list(range(len(labels)))
        for task, found in zip(stream.tasks, positions, strict=True):
            assert set(labels[found].tolist()) == {int(order[c]) for c in task.classes}
    assert stream.class_masks.tolist() == [[c // 2 == t for c in range(6)] for t in range(3)]


def test_class_order_pairs_the_classes_as_asked():
    order, source = (3, 5, 0, 1, 4, 2), synthetic_source()
    stream = make(class_order=order, permute_classes=True, seed=5)
    assert stream.class_order.tolist() == list(order)
    assert stream.class_names == [f"class {c}" for c in order]
    for t, pair in enumerate([{3, 5}, {0, 1}, {4, 2}]):
        assert set(source.train_y[stream.tasks[t].train_index].tolist()) == pair
        assert set(source.test_y[stream.tasks[t].test_index].tolist()) == pair
        assert set(stream.train(stream.tasks[t]).y.tolist()) == {2 * t, 2 * t + 1}


def test_class_order_is_refused_where_tasks_have_all_classes():
    with pytest.raises(UserError, match="--class_order: not for tiny, whose tasks have all classes"):
        make("domain-il", class_order=(3, 5, 0, 1, 4, 2))


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
def test_pixel_mean_and_std_replace_the_benchmarks(scenario):
    plain, asked = make(scenario), make(scenario, pixel_mean=(0.1307,), pixel_std=(0.3081,))
    for before, after in zip(
        plain.batches(plain.tasks[1], 0, 4), asked.batches(asked.tasks[1], 0, 4), strict=True
    ):
        torch.testing.assert_close(after.x, (before.x - 0.1307) / 0.3081)
        assert torch.equal(after.x_raw, before.x_raw)
    assert asked.augment.crop_padding == plain.augment.crop_padding and asked.augment.flip


def test_a_batch_is_what_the_source_says(blocks):
    stream, source = make(permute_classes=True, seed=1), synthetic_source()
    labels = torch.from_numpy(scenarios.relabel(source.train_y.numpy(), stream.class_order))
    for batch in stream.batches(stream.tasks[1], 0, 4):
        assert torch.equal(batch.x_raw, source.train_x[batch.index]) and batch.x_raw.dtype == torch.uint8
        assert torch.equal(batch.y, labels[batch.index])
        assert batch.task_id.tolist() == [1] * len(batch.y)
        assert batch.x.shape == batch.x_raw.shape and batch.x.dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_an_epoch_shows_every_sample_once(blocks, batch_size):
    stream = make()
    for task in stream.tasks:
        batches = list(stream.batches(task, 0, batch_size))
        assert stacked(batches, "index").sort().values.tolist() == task.train_index.tolist()
        assert len(batches) == stream.n_steps(task, batch_size)
        assert {len(batch.y) for batch in batches[:-1]} <= {batch_size}


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 8])
def test_a_resumed_epoch_continues_bit_for_bit(blocks, start):
    stream, again = make(), make()
    whole = list(stream.batches(stream.tasks[0], 1, 4))
    rest = list(again.batches(again.tasks[0], 1, 4, start=start))
    assert len(rest) == len(whole) - start
    for ours, theirs in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_order_and_augmentation_differ_by_epoch_task_and_seed(blocks):
    stream, other = make("domain-il"), make("domain-il", seed=1)
    tasks = stream.tasks
    runs = [(stream, tasks[0], 0), (stream, tasks[0], 1), (stream, tasks[1], 0), (other, other.tasks[0], 0)]
    orders = [tuple(stacked(list(s.batches(t, epoch, 4)), "index").tolist()) for s, t, epoch in runs]
    assert len(set(orders)) == 4 and len({tuple(sorted(order)) for order in orders}) == 1


def test_blocks_have_augmentations_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", {"cpu": 4 * 36 * 4})
    stream = make()
    calls = []
    stream.augment = lambda raw, generator: calls.append(generator.initial_seed()) or raw.float()
    list(stream.batches(stream.tasks[0], 0, 4))
    list(stream.batches(stream.tasks[0], 1, 4))
    assert len(calls) == len(set(calls)) == 2 * stream.n_steps(stream.tasks[0], 4)


def test_domains_transform_training_and_test_images_alike():
    stream, source = make("domain-il"), synthetic_source()
    for i, task in enumerate(stream.tasks):
        order = np.random.RandomState(i).permutation(36)
        for found, images in ((stream.train(task), source.train_x), (stream.test(3), source.test_x)):
            rows = found.task_id == i
            expected = images.flatten(1)[:, order].view_as(images)
            assert torch.equal(found.x_raw[rows], expected[found.index[rows]])


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
def test_the_joint_task_presents_all_training_data_and_ends_the_stream(scenario):
    stream = make(scenario)
    (joint,) = stream.joint()
    batches = list(stream.batches(joint, 0, 4))
    pairs = list(zip(stacked(batches, "task_id").tolist(), stacked(batches, "index").tolist(), strict=True))
    expected = [(task.id, i) for task in stream.tasks for i in task.train_index.tolist()]
    assert sorted(pairs) == sorted(expected) and pairs != expected
    assert joint.id == 2 and joint.classes == tuple(range(6)) and len(batches) == stream.n_steps(joint, 4)


def test_test_samples_are_stacked_in_task_order():
    stream, source = make(permute_classes=True, seed=2), synthetic_source()
    everything = stream.test(3)
    assert everything.index.tolist() == torch.cat([task.test_index for task in stream.tasks]).tolist()
    assert torch.equal(everything.x_raw, source.test_x[everything.index])
    start = 0
    for task, end in zip(stream.tasks, stream.test_ends, strict=True):
        part = stream.test(task.id + 1)
        assert len(part.y) == end and torch.equal(part.x_raw, everything.x_raw[:end])
        assert set(everything.y[start:end].tolist()) == set(task.classes)
        assert set(everything.task_id[start:end].tolist()) == {task.id}
        start = end


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
def test_validation_replaces_the_test_set_and_leaves_training(scenario):
    stream, source = make(scenario, validation=20.0), synthetic_source()
    kept = {i for task in stream.tasks for i in task.train_index.tolist()}
    n = len(source.train_y)
    held = [i for i in range(n) if i not in kept]
    assert len(held) == round(0.2 * n)
    whole, plain = stream.test(3), make(scenario).test(3)
    assert len(whole.y) == len(held) * (3 if scenario == "domain-il" else 1) != len(plain.y)
    images = source.train_x[held]
    if scenario == "class-il":  # the images shown are exactly those held out
        shown = {bytes(image.numpy()) for image in whole.x_raw}
        assert shown == {bytes(image.numpy()) for image in images}
        assert not shown & {bytes(image.numpy()) for image in source.test_x}
    assert stream.n_train == n


def test_a_validation_share_too_small_for_every_class_is_refused():
    with pytest.raises(UserError, match="--validation 1"):
        make(validation=1.0)


def test_more_tasks_than_classes_are_refused():
    with pytest.raises(UserError, match="--n_tasks 7: 6 classes"):
        make(n_tasks=7)
