"""The benchmarks of GEM and MER: angles, permutations, subsets, test images transformed at evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engram.datasets import benchmark as module
from engram.datasets import mnist_rotations, perm_mnist, scenarios, sources
from engram.utils.batching import CHUNK
from engram.utils.training.evaluation import accuracies
from tests.conftest import tiny_method
from tests.unit.test_sources import MNIST_DIR, mnist_folder
from tests.unit.test_streams import build

PERMUTED = ("mnist-permutations", "mnist-manypermutations")
MER = ("mnist-rotations", *PERMUTED)
needs_mnist = pytest.mark.skipif(MNIST_DIR is None, reason="the real MNIST is not here")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """MNIST of 12 + 7 images."""
    root = tmp_path_factory.mktemp("data")
    mnist_folder(root)
    return root


def subsets(stream) -> list[list[int]]:
    return [task.train_index.tolist() for task in stream.tasks]


def same(stream, other) -> bool:
    return all(
        torch.equal(a, b)
        for s, o in zip(stream.tasks, other.tasks, strict=True)
        for a, b in zip(stream.train(s), other.train(o), strict=True)
    )


# Angles and permutations


@pytest.mark.parametrize("n_tasks", [1, 7, 20])
def test_every_angle_lies_in_its_bin(data, n_tasks):
    for seed in range(5):
        stream, _ = build("mnist-rotations", data, n_tasks=n_tasks, seed=seed)
        places = np.array(stream.transforms["angles"]) * n_tasks / 180
        assert np.floor(places).tolist() == list(range(n_tasks))


def test_angles_are_uniform_in_their_bins():
    """Kolmogorov-Smirnov over 50 seeds x 20 bins, alarm below 1e-6."""
    places = np.sort([mnist_rotations.draw(s, t, 20) / 9 - t for s in range(50) for t in range(20)])
    distance = np.abs(places - (np.arange(1000) + 0.5) / 1000).max()
    assert distance < np.sqrt(np.log(2e6) / 2000)


def test_rotated_images_are_pillows(data):
    stream, _ = build("mnist-rotations", data, samples_per_task=3, n_tasks=4, seed=2)
    source, whole = sources.mnist(data), stream.test(4)
    for task, angle in zip(stream.tasks, stream.transforms["angles"], strict=True):
        tested = whole.task_id == task.id
        for found, images in ((stream.train(task), source.train_x),
                              (module.Samples(*(f[tested] for f in whole)), source.test_x)):  # fmt: skip
            for x, i in zip(found.x_raw, found.index, strict=True):
                expected = Image.fromarray(images[i, 0].numpy()).rotate(angle)
                assert np.array_equal(x[0].numpy(), np.asarray(expected))


@pytest.mark.parametrize("name", PERMUTED)
def test_every_task_is_permuted_in_its_own_way(data, name):
    stream, _ = build(name, data, seed=1)
    other, _ = build(name, data, seed=2)
    orders = [tuple(order) for s in (stream, other) for order in s.transforms["permutations"]]
    assert all(sorted(order) == list(range(784)) for order in orders)
    assert len({*orders, tuple(range(784))}) == len(orders) + 1
    source = sources.mnist(data)
    for task, order in zip(stream.tasks, orders, strict=False):
        samples = stream.train(task)
        assert torch.equal(samples.x_raw.flatten(1), source.train_x[samples.index].flatten(1)[:, list(order)])
        assert torch.equal(samples.y, source.train_y[samples.index])


def test_many_permutations_continue_permutations(data):
    few, many = (build(name, data, seed=3)[0].transforms["permutations"] for name in PERMUTED)
    assert many[:20] == few and len(many) == 100


# Subsets


@pytest.mark.parametrize("name", MER)
def test_subsets_are_of_the_size_asked_for_and_differ_by_task_and_seed(data, name):
    stream, _ = build(name, data, samples_per_task=5, n_tasks=8, seed=0)
    drawn = subsets(stream)
    assert all(part == sorted(set(part)) and len(part) == 5 for part in drawn)
    assert all(0 <= i < 12 for part in drawn for i in part)
    assert len({tuple(part) for part in drawn}) > 1, "a subset of its own for each task, with overlaps"
    assert drawn != subsets(build(name, data, samples_per_task=5, n_tasks=8, seed=1)[0])
    assert len(stream.test(8).y) == 8 * 7, "all test images in each task"
    shown = [batch.index.item() for batch in stream.batches(stream.tasks[1], 0, 1)]
    assert sorted(shown) == drawn[1] and stream.n_steps(stream.tasks[1], 1) == 5


@pytest.mark.parametrize("count", [0, 12, 1000])
def test_zero_and_more_than_there_are_take_all(data, count):
    stream, _ = build("mnist-rotations", data, samples_per_task=count, n_tasks=2)
    assert subsets(stream) == [list(range(12))] * 2


@pytest.mark.parametrize("name", MER)
def test_the_same_seed_gives_the_same_stream(data, name):
    first, second, other = (build(name, data, n_tasks=3, samples_per_task=6, seed=s)[0] for s in (4, 4, 5))
    assert same(first, second) and first.transforms == second.transforms
    assert not same(first, other) and first.transforms != other.transforms


def test_subsets_are_uniform():
    """Each of 10 positions is in a subset of 3 in 30 % of 3,000 tasks, within five standard errors."""
    drawn = np.concatenate([scenarios.subset(np.arange(10, 20), 3, 0, task) for task in range(3000)])
    shares = np.bincount(drawn, minlength=20)[10:] / 3000
    assert np.abs(shares - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 3000)


def test_a_subset_is_drawn_from_what_validation_leaves():
    source = tiny_method("sgd")[0].setup.benchmark  # 90 training samples
    kept = np.arange(0, source.n_train, 2)
    assert set(scenarios.subset(kept, 20, 0, 1)) < set(kept)


@pytest.mark.parametrize("name", MER)
def test_a_stream_is_built_without_transforming_an_image(data, monkeypatch, name):
    """100 tasks of 60,000 images would take minutes: a task's images are transformed when it is trained."""
    transformed = []

    def counting(transform):
        return lambda raw, **given: transformed.append(len(raw)) or transform(raw, **given)

    for module_of, function in ((mnist_rotations, "rearrange"), (perm_mnist, "permute")):
        monkeypatch.setattr(module_of, function, counting(getattr(module_of, function)))
    stream, _ = build(name, data, n_tasks=5)
    assert not transformed
    assert len(stream.train(stream.tasks[3]).x_raw) == sum(transformed) > 0


@needs_mnist
@pytest.mark.parametrize(
    ("name", "sizes"), [(MER[0], (20, 1000)), (MER[1], (20, 1000)), (MER[2], (100, 200))]
)
def test_the_papers_streams_from_the_real_mnist(name, sizes):
    stream, config = build(name, MNIST_DIR)
    assert [len(task.train_index) for task in stream.tasks] == [sizes[1]] * sizes[0]
    assert stream.test_ends.tolist() == [10000 * (t + 1) for t in range(sizes[0])]
    assert len({i for part in subsets(stream) for i in part}) > 0.25 * sizes[0] * sizes[1]
    train = config.train
    assert (train.n_epochs, train.batch_size, train.lr, config.run.backbone) == (1, 1, 0.01, "mlp")


# Test images transformed at evaluation


@pytest.mark.parametrize("size", [1, 5, 7, 8, 1000])
@pytest.mark.parametrize("n_tasks", [1, 2, 4])
@pytest.mark.parametrize("name", ["mnist-rotations", "mnist-permutations"])
def test_chunks_are_the_stack_bit_for_bit(data, monkeypatch, name, n_tasks, size):
    stream, _ = build(name, data, n_tasks=4)
    stacked = list(stream.test_chunks(n_tasks, size))
    monkeypatch.setattr(module, "STACK_BYTES", {"cpu": 0})
    fresh, _ = build(name, data, n_tasks=4)
    lazy = list(fresh.test_chunks(n_tasks, size))
    assert fresh._test is None, "no stack was made"
    for ours, theirs in zip(lazy, stacked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    whole = [torch.cat(field) for field in zip(*lazy, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, fresh.test(n_tasks), strict=True))
    assert {len(chunk.y) for chunk in lazy[:-1]} <= {size}


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize(("n_tasks", "n_seen"), [(3, 3), (2, 1), (3, 0)])
def test_accuracies_are_the_same_with_and_without_a_stack(monkeypatch, scenario, n_tasks, n_seen):
    monkeypatch.setitem(CHUNK, "cpu", 7)
    method, _ = tiny_method("sgd", scenario)
    expected = accuracies(method, n_tasks, n_seen)
    monkeypatch.setitem(module.STACK_BYTES, "cpu", 0)
    found = accuracies(method, n_tasks, n_seen)
    assert torch.equal(found, expected) and found.shape == (n_tasks, 2) and found.is_contiguous()


def test_the_test_samples_of_one_task(data):
    stream, _ = build("mnist-rotations", data, n_tasks=3)
    whole = stream.test(3)
    for task in stream.tasks:
        own = stream.test_of(task)
        expected = [field[whole.task_id == task.id] for field in whole]
        assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
