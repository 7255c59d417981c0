"""SLCA: Gaussians against numpy, the alignment's loss against loops, heads restored and frozen."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from engram.models import slca
from engram.models.parts.alignment import ClassGaussians, Schedule, align
from engram.models.slca import mean_norm
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.contract.test_methods import small_method, train

UNEVEN = {"half_classes_in_first_task": True}  # three tasks of 3, 2 and 1 classes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def begun(task_id, **flags):
    """SLCA with the tasks before learned, about to learn this one."""
    method, config = small_method("slca", **flags)
    train(method, config, tasks=task_id)
    task = method.benchmark.tasks[task_id]
    method.enter(task)
    return method, config, task


def head_weights(method):
    return {name: p.clone() for name, p in method.net.head.state_dict().items()}


def test_gaussians_are_numpys():
    method, _, _ = begun(2, **UNEVEN)
    for task in method.benchmark.tasks[1:2]:  # the last that was described: the network has not changed since
        samples = method.benchmark.train(task)
        features = method.features(samples.x_raw).double().numpy()
        for label in task.classes:
            rows = features[samples.y.numpy() == label]
            expected = np.cov(rows.T) + 1e-4 * np.eye(rows.shape[1])
            factor = method.gaussians.factors[label].double()
            np.testing.assert_allclose((factor @ factor.T).numpy(), expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(method.gaussians.means[label].numpy(), rows.mean(0), rtol=1e-5)
            assert method.gaussians.counts[label] == len(rows)
    assert method.gaussians.counts.tolist()[-1] == 0, "the last class is still to come"


def test_draws_have_the_scaled_mean_and_the_covariance():
    gaussians = ClassGaussians(4, 3, ridge=0.01)
    rows = normal(50, 3) @ normal(3, 3, seed=1) + 4
    gaussians.fit(rows, torch.tensor([1, 3] * 25))
    scales = torch.tensor([9.0, 0.5, 9.0, 1.0])
    samples, y = gaussians.sample(5_000, torch.Generator().manual_seed(2), scales)
    assert y.unique().tolist() == [1, 3] and len(samples) == 10_000
    for label, scale in ((1, 0.5), (3, 1.0)):
        of_class = rows[label == torch.tensor([1, 3] * 25)]
        drawn = samples[y == label]
        torch.testing.assert_close(drawn.mean(0), scale * of_class.mean(0), rtol=0.02, atol=0.1)
        torch.testing.assert_close(drawn.T.cov(), of_class.T.cov() + 0.01 * torch.eye(3), rtol=0.1, atol=0.1)


def test_factors_grow_with_the_classes_and_are_resumed():
    """Three and two classes of six; a state from before they grew has room for all."""
    gaussians = begun(2, **UNEVEN)[0].gaussians
    assert len(gaussians.factors) == 5
    padded = torch.cat([gaussians.factors, torch.zeros(1, *gaussians.factors.shape[1:])])
    for factors in (gaussians.factors, padded):
        resumed = ClassGaussians(6, gaussians.means.shape[1])
        resumed.load_state_dict(gaussians.state_dict() | {"factors": factors})
        drawn, again = (g.sample(3, torch.Generator().manual_seed(1)) for g in (gaussians, resumed))
        assert all(map(torch.equal, drawn, again))


def test_a_class_of_one_sample_is_drawn_around_it():
    gaussians = ClassGaussians(1, 3, ridge=1e-4)
    gaussians.fit(torch.ones(1, 3), torch.tensor([0]))
    samples, _ = gaussians.sample(100, torch.Generator().manual_seed(0))
    assert (samples - 1).abs().max() < 0.05


def test_alignment_makes_heads_comparable():
    """One of two classes always loses until its bias is corrected by draws of both."""
    gaussians, head = ClassGaussians(2, 2, ridge=1e-4), nn.Linear(2, 2)
    y = torch.arange(2).repeat(50)
    features = 0.1 * normal(100, 2) + torch.eye(2)[y]
    gaussians.fit(features, y)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        head.bias.copy_(torch.tensor([5.0, 0.0]))
    assert (head(features).argmax(1) == y).float().mean() == 0.5
    draws = torch.Generator().manual_seed(0)
    schedule = Schedule(n_epochs=20, n_samples=64, batch_size=16, lr=0.1, weight_decay=0)
    align(head, lambda: gaussians.sample(64, draws), nn.functional.cross_entropy, schedule, draws)
    assert (head(features).argmax(1) == y).float().mean() == 1


@pytest.mark.parametrize("flags", [{}, UNEVEN])
def test_the_next_task_begins_with_the_heads_before_alignment(flags):
    method, _, task = begun(2, **flags)
    aligned, trained = head_weights(method), method.head_as_trained
    assert any(not torch.equal(aligned[name], trained[name]) for name in aligned)
    method.begin_task(task)
    restored = head_weights(method)
    assert all(torch.equal(restored[name], trained[name]) for name in trained)
    frozen = {name for name in restored if not name.startswith("heads.2.")}
    assert frozen.isdisjoint(name.removeprefix("head.") for name in method.trainable())


def test_alignment_leaves_the_encoder_and_heads_to_come_as_they_are():
    """With and without alignment everything but the heads that were seen is the same, weight decay or not."""
    runs = [begun(2, ca_epochs=n, optim_wd=0.1)[0] for n in (0, 3)]
    states = [method.net.state_dict() for method in runs]
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed and all(name.startswith(("head.heads.0.", "head.heads.1.")) for name in changed)


def test_logit_norms_against_a_loop():
    logits, tasks = normal(4, 6), [(0, 1, 2), (3, 4)]
    masks = torch.zeros(2, 6, dtype=torch.bool)
    for t, classes in enumerate(tasks):
        masks[t, list(classes)] = True
    for row, value in zip(logits.tolist(), mean_norm(logits, masks)[:, 0].tolist(), strict=True):
        norms = [math.sqrt(sum(row[c] ** 2 for c in classes)) for classes in tasks]
        assert value == pytest.approx(sum(norms) / 2, rel=1e-5)


def test_what_alignment_minimises_by_hand(monkeypatch):
    """The loss that `align` is given, and the s_c of its draws, with tasks of 3, 2 and 1 classes."""
    given = {}

    def note(head, draw, loss, schedule, draws):
        given.update(draw=draw, loss=loss, schedule=schedule)

    monkeypatch.setattr(slca, "align", note)
    settings = {"ca_epochs": 3, "ca_samples": 4, "ca_batch_size": 7, "ca_lr": 0.5}
    method, _, _ = begun(2, **UNEVEN, **settings, optim_wd=0.1)
    assert given["schedule"] == Schedule(3, 4, 7, 0.5, 0.1)
    logits, y = normal(1, 6), torch.tensor([1])
    row = logits[0].tolist()
    size = (math.hypot(*row[:3]) + math.hypot(*row[3:5])) / 2
    scores = [value / (0.1 * size) for value in row[:5]]
    expected = math.log(sum(map(math.exp, scores))) - scores[1]
    assert given["loss"](logits, y).item() == pytest.approx(expected, rel=1e-4)
    scales = []
    monkeypatch.setattr(method.gaussians, "sample", lambda n, draws, s: scales.extend(s.tolist()))
    given["draw"]()
    assert scales[:5] == pytest.approx([0.9 + 0.1 * (t + 1) / 2 for t in (0, 0, 0, 1, 1)])


def test_slca_plus_plus_by_hand(monkeypatch):
    """Its loss, the factor of drawn features and that of heads which predict."""
    given = {}
    monkeypatch.setattr(slca, "align", lambda head, draw, loss, *rest: given.update(draw=draw))
    method, _, _ = begun(2, reverse_ce=0.1, drift_scale=0.02)
    trained, now = method.head_as_trained, head_weights(method)
    torch.testing.assert_close(now["heads.0.weight"], 1.02 * trained["heads.0.weight"])
    for name in ("heads.0.bias", "heads.1.weight"):
        assert torch.equal(now[name], trained[name])
    plain = ClassGaussians.sample(method.gaussians, 8, torch.Generator())[0]
    monkeypatch.setattr(
        method.gaussians, "sample", lambda n, draws: (plain, torch.arange(4).repeat_interleave(8))
    )
    factors = plain / given["draw"]()[0]
    old, new = factors[:16], factors[16:]
    torch.testing.assert_close(new, torch.ones_like(new))
    assert 1.01 <= old.min() and old.max() <= 1.03 and old[:, 0].std() > 1e-3
    batch = next(method.benchmark.batches(method.benchmark.tasks[2], 0, 4))
    losses = []
    for logits, label in zip(method.logits(batch.x, batch.task_id).tolist(), batch.y.tolist(), strict=True):
        total = sum(map(math.exp, logits))
        p = [math.exp(z) / total for z in logits]
        q = [1 if c == label else 1e-4 for c in range(6)]
        losses.append(-math.log(p[label]) - 0.1 * sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
    assert method.loss(batch).item() == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_shared_classes_are_refused():
    with pytest.raises(UserError, match="classes of their own"):
        tiny_method("slca", "domain-il")
