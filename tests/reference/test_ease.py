"""EASE: prototypes and scores against loops; with one task the class means in its subspace."""

import math

import pytest
import torch
import torch.nn.functional as F

from engram.backbones.petl import choose
from tests.contract.test_methods import small_method, train

pytest.importorskip("timm")


def learned(tasks=3, **flags):
    method, config = small_method("ease", lr=0.5, **flags)
    train(method, config, tasks=tasks)
    return method


@torch.no_grad()
def features(method, j, x):
    choose(method.adapters, j)
    return method.net.eval().features(x)


def class_mean(method, j, c):
    """Mean of f_j over the training images of class c, one image at a time."""
    for task in method.benchmark.tasks:
        samples = method.benchmark.train(task)
        rows = [i for i, y in enumerate(samples.y.tolist()) if y == c]
        if rows:
            x = method.benchmark.augment.normalise(samples.x_raw)
            return torch.stack([features(method, j, x[i : i + 1])[0] for i in rows]).mean(0)
    raise AssertionError(c)


def test_prototypes_against_loops():
    """Three tasks of two classes: means where a class has images, softmax of cosines where it has none."""
    method = learned()
    task_of = [0, 0, 1, 1, 2, 2]
    p = {(c, j): class_mean(method, j, c) for c in range(6) for j in range(task_of[c] + 1)}
    for c in range(6):
        for j in range(task_of[c] + 1, 3):
            i = task_of[c]
            others = [n for n in range(6) if task_of[n] >= j]
            weights = [math.exp(F.cosine_similarity(p[c, i], p[n, i], dim=0)) for n in others]
            p[c, j] = sum(w * p[n, j] for w, n in zip(weights, others, strict=True)) / sum(weights)
    for (c, j), expected in p.items():
        torch.testing.assert_close(method.prototypes[j, c], expected, rtol=1e-4, atol=1e-5)


def test_scores_against_a_loop():
    method = learned(ease_alpha=0.3)
    samples = method.benchmark.test(3)
    x = method.benchmark.augment.normalise(samples.x_raw)[:5]
    with torch.no_grad():
        scores = method.predict(x, samples.task_id[:5])
    for n in range(5):
        for c in range(6):
            cosines = [
                F.cosine_similarity(features(method, j, x[n : n + 1])[0], method.prototypes[j, c], dim=0)
                for j in range(3)
            ]
            own = c // 2
            expected = cosines[own] + 0.3 / 2 * sum(cosines[j] for j in range(3) if j != own)
            torch.testing.assert_close(scores[n, c], expected, rtol=1e-4, atol=1e-5)


def test_after_one_task_it_is_ncm_in_the_adapted_space():
    method = learned(tasks=1)
    samples = method.benchmark.test(1)
    x = method.benchmark.augment.normalise(samples.x_raw)
    with torch.no_grad():
        scores = method.predict(x, samples.task_id)
    means = torch.stack([class_mean(method, 0, c) for c in range(2)])
    expected = F.normalize(features(method, 0, x)) @ F.normalize(means).T
    torch.testing.assert_close(scores[:, :2], expected, rtol=1e-4, atol=1e-5)
    assert (scores[:, 2:] < -1e30).all(), "classes to come are never predicted"


def test_adapters_of_other_tasks_and_the_encoder_stay_bit_for_bit():
    method = learned(tasks=1)
    task = method.benchmark.tasks[1]
    assert method.net.head.scale != 1, "it has learned"
    method.enter(task)
    method.begin_task(task)
    assert method.net.head.scale == 1
    method.optimizer = torch.optim.SGD(method.trainable().values(), lr=0.5, weight_decay=0.1)
    before = {name: p.clone() for name, p in method.net.named_parameters()}
    for batch in method.benchmark.batches(task, 0, 4):
        method.observe(batch)
    changed = {name for name, p in method.net.named_parameters() if not torch.equal(p, before[name])}
    learns = ("adapter.members.1.", "head.embeddings.1", "head.scale")
    assert all(any(part in name for part in learns) for name in method.trainable())
    assert changed and all(any(part in name for part in learns) for name in changed)
    assert sum("members.1.up.bias" in name for name in changed) == method.net.depth


def test_evaluation_leaves_the_chosen_adapters():
    method = learned(tasks=2)
    choose(method.adapters, 0)  # not the last of those that a prediction goes through
    state = {name: value.clone() for name, value in method.net.state_dict().items()}
    samples = method.benchmark.test(2)
    method.predict(method.benchmark.augment.normalise(samples.x_raw), samples.task_id)
    assert all(torch.equal(value, state[name]) for name, value in method.net.state_dict().items())
    assert {adapters.chosen for adapters in method.adapters} == {0}


def test_tasks_of_unequal_size():
    method = learned(tasks=2, n_tasks=2, half_classes_in_first_task=True)
    assert method.prototypes.isfinite().all() and (method.prototypes[1].norm(dim=1) > 0).all()


def test_each_task_has_an_adapter_of_the_wanted_size_in_every_block():
    method, _ = small_method("ease", adapter_size=5)
    members = [adapter for adapters in method.adapters for adapter in adapters.members]
    assert len(members) == 3 * method.net.depth
    assert all(adapter.down.weight.shape == (5, 16) for adapter in members)
