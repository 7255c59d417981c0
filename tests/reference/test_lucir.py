"""LUCIR: its three losses against the paper's formulas by hand, imprinting, fixed embeddings."""

import math

import pytest
import torch

from engram.models.lucir import margin_ranking
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method
from tests.contract.test_methods import train


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def in_the_third_task(**flags):
    """Two tasks learned, the third begun; the network a little away from its teacher."""
    method, config = tiny_method("lucir", buffer_size=24, n_epochs=2, initial_scale=4, **flags)
    train(method, config, tasks=2)
    task = method.setup.benchmark.tasks[2]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    return method, task


def test_the_factor_of_the_cosines_stays_at_its_start_or_above(monkeypatch):
    """A first step on samples whose cosines are all wrong would take it to -189."""
    method, config = tiny_method("lucir", buffer_size=24, initial_scale=1.5)
    task = method.setup.benchmark.tasks[0]
    method.enter(task)
    method.begin_task(task)
    head, scale = method.net.head, method.net.head.scale
    method.optimizer = torch.optim.SGD([scale], lr=100.0)
    batch = next(method.setup.benchmark.batches(task, 0, config.train.batch_size))
    with monkeypatch.context() as patched:
        right = head.cosines
        wrong = 2 * torch.nn.functional.one_hot(1 - batch.y, 6).float() - 1
        patched.setattr(head, "cosines", lambda features: wrong)
        method.observe(batch)
        assert scale.item() == 1.5
        patched.setattr(head, "cosines", lambda features: -wrong)
        method.observe(batch)
        assert scale.item() > 1.5, "upwards it is free"
    assert head.cosines == right


@pytest.mark.parametrize(("k", "margin"), [(1, 0.5), (2, 0.5), (5, 0.2)])
def test_margin_ranking_by_hand(k, margin):
    cosines = 2 * torch.rand(9, 5, generator=torch.Generator().manual_seed(0)) - 1
    y, terms = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 4]), []
    for row, label in zip(cosines.tolist(), y.tolist(), strict=True):
        if label < 3:
            nearest = sorted(row[3:], reverse=True)[:k]
            terms += [max(0.0, margin - row[label] + other) for other in nearest]
    found = margin_ranking(cosines, y, 3, k, margin)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert margin_ranking(cosines[3:5], y[3:5], 3, k, margin) == 0, "no old classes in the batch"


def test_loss_is_the_sum_of_the_papers_three(monkeypatch):
    method, task = in_the_third_task(minibatch_size=6, lamda_base=2, lamda_mr=0.7, k_mr=1, mr_margin=0.4)
    for batch in method.setup.benchmark.batches(task, 0, 4):
        method.observe(batch)
    seen, union = [], method.union
    monkeypatch.setattr(method, "union", lambda batch: seen.append(union(batch)) or seen[-1])
    loss = method.loss(next(method.setup.benchmark.batches(task, 1, 4))).item()
    (samples,) = seen
    embeddings, scale = torch.cat(list(method.net.head.embeddings)), method.net.head.scale.item()
    entropy, apart, ranking = [], [], []
    for x, y in zip(samples.x, samples.y.tolist(), strict=True):
        f, before = method.net.features(x[None])[0], method.teacher.features(x[None])[0]
        c = [cosine(f, theta) for theta in embeddings]
        entropy.append(math.log(sum(math.exp(scale * v) for v in c)) - scale * c[y])
        apart.append(1 - cosine(f, before))
        if y < 4:
            ranking.append(max(0.0, 0.4 - c[y] + max(c[4:])))
    assert len(entropy) == 10 and len(ranking) == 6 and max(apart) > 1e-4
    expected = sum(entropy) / 10 + 2 * math.sqrt(4 / 2) * sum(apart) / 10 + 0.7 * sum(ranking) / 6
    assert loss == pytest.approx(expected, rel=1e-4)


def test_new_classes_are_imprinted_with_the_length_of_the_old():
    method, task = in_the_third_task()
    benchmark, head = method.setup.benchmark, method.net.head
    samples = benchmark.train(task)
    lengths = [theta.norm().item() for part in head.embeddings[:2] for theta in part]
    with torch.no_grad():
        found = method.net.features(benchmark.augment.normalise(samples.x_raw))
    for row, label in enumerate(task.classes):
        unit = [f / f.norm() for f, y in zip(found, samples.y, strict=True) if y == label]
        mean = sum(unit) / len(unit)
        expected = mean / mean.norm() * sum(lengths) / len(lengths)
        torch.testing.assert_close(head.embeddings[2][row], expected)


def test_old_embeddings_never_move_not_even_by_weight_decay():
    method, task = in_the_third_task(optim_wd=0.1)
    before = [part.clone() for part in method.net.head.embeddings]
    for batch in method.setup.benchmark.batches(task, 0, 4):
        method.observe(batch)
    after = list(method.net.head.embeddings)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])
