"""MOS: merging and alignment against loops, the retrieval of adapters against one image at a time."""

import pytest
import torch
import torch.nn.functional as F

from engram.backbones.petl import choose
from engram.models import mos
from engram.models.parts.alignment import Schedule
from engram.utils.tracking.mlflow_tracker import run_tags
from tests.contract.test_methods import small_method, train

pytest.importorskip("timm")

FAST = {"lr": 0.05, "encoder_lr_scale": 10}


def learned(tasks=3, **flags):
    method, config = small_method("mos", **FAST | flags)
    train(method, config, tasks=tasks)
    method.net.eval()
    return method


def images_of(method, n_tasks=3):
    samples = method.benchmark.test(n_tasks)
    return method.benchmark.augment.normalise(samples.x_raw), samples.task_id


def weights(method):
    return {name: value.clone() for name, value in method.net.state_dict().items()}


def parameters(method, task, block=0):
    return [p.detach().clone() for p in method.adapters[block].members[task].parameters()]


@torch.no_grad()
def features(method, j, x):
    choose(method.adapters, j)
    return method.net.features(x)


def begun(task_id, **flags):
    """About to take a step in a task, with the optimizer of the run."""
    method = learned(task_id, **flags)
    task = method.benchmark.tasks[task_id]
    method.enter(task)
    method.begin_task(task)
    return method, next(method.benchmark.batches(task, 0, 4))


def test_each_step_merges_with_the_mean_of_the_earlier_adapters():
    """Steps of rate zero but for the merge: .7 of the adapter and .3 of the mean of the two before it."""
    method, batch = begun(2, merge_momentum=0.3)
    with torch.no_grad():
        for adapters in method.adapters:
            for p in adapters.members[2].parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    method.optimizer = torch.optim.SGD(method.trainable().values(), lr=0)
    before = weights(method)
    method.observe(batch)
    for i, adapters in enumerate(method.adapters):
        for name, p in adapters.members[2].named_parameters():
            earlier = [before[f"body.blocks.{i}.adapter.members.{j}.{name}"] for j in (0, 1)]
            own = before[f"body.blocks.{i}.adapter.members.2.{name}"]
            torch.testing.assert_close(p.detach(), 0.7 * own + 0.3 * (earlier[0] + earlier[1]) / 2)
    after = weights(method)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all("adapter.members.2." in name for name in changed)


def test_a_step_teaches_the_tasks_adapters_and_head_alone():
    method, batch = begun(1)
    method.optimizer = torch.optim.SGD(method.trainable().values(), lr=0.5, weight_decay=0.1)
    before = weights(method)
    method.observe(batch)
    after = weights(method)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {".adapter.members.1." in name or name.startswith("head.heads.1.") for name in changed} == {True}
    assert any(name.startswith("head.heads.1.") for name in changed)


def retrieved(method, x, max_rounds):
    """The scores of one image and the tasks whose adapters it tries; task c is that of class c."""
    cosines = [F.cosine_similarity(features(method, 0, x)[0], w, dim=0) for w in method.prototypes]
    k, tried = max(range(6), key=lambda c: cosines[c]), []
    while True:
        tried.append(k)
        logits = method.net.head(features(method, k, x))[0]
        following = int(logits.argmax())
        if following == k or len(tried) == max_rounds:
            return logits.softmax(0) + (6 * torch.stack(cosines)).softmax(0), tried
        k = following


@torch.no_grad()
@pytest.mark.parametrize("max_rounds", [1, 2, 4])
def test_retrieval_one_image_at_a_time(max_rounds):
    """Drawn adapters and heads send images through the adapters of one to four tasks."""
    method, _ = small_method("mos", n_tasks=6, max_rounds=max_rounds)
    method.net.eval()
    method.n_learned, draws = 6, torch.Generator().manual_seed(0)
    for name, p in method.net.named_parameters():
        if "adapter.members" in name or (name.endswith("weight") and name.startswith("head.")):
            p.copy_(3 * torch.randn(p.shape, generator=draws))
    x = torch.randn(40, 1, 6, 6, generator=draws)
    method.prototypes.copy_(features(method, 0, x[:6]))
    mean = torch.cat([features(method, j, x) for j in range(6)]).mean(0)
    for layer in method.net.head.heads:
        layer.bias.copy_(-layer.weight @ mean)  # no class wins everywhere
    scores, n_tried = method.predict(x, torch.zeros(40, dtype=torch.long)), set()
    for n in range(len(x)):
        expected, tried = retrieved(method, x[n : n + 1], max_rounds)
        n_tried.add(len(tried))
        torch.testing.assert_close(scores[n], expected, rtol=1e-4, atol=1e-5)
    assert n_tried == set(range(1, max_rounds + 1)), "every number of rounds occurs"


def test_evaluation_changes_no_tensor():
    method = learned(2)
    choose(method.adapters, 0)
    before, x = weights(method), images_of(method, 2)
    with torch.no_grad():
        scores = method.predict(*x)
    assert {adapters.chosen for adapters in method.adapters} == {0}
    assert all(torch.equal(value, before[name]) for name, value in method.net.state_dict().items())
    assert (scores[:, 4:] < -1e30).all() and (scores[:, :4] > 0).all(), "classes to come are never predicted"


def test_as_released_a_test_batch_leaves_a_power_of_the_adapters():
    """(1 − α)^L of what a task's adapters are beyond the mean of the earlier ones as training left them."""
    method = learned(3, as_released=True, merge_momentum=0.2, depth=3)
    with torch.no_grad():
        for adapters in method.adapters:
            for p in adapters.members[2].parameters():
                p.add_(1.0)
    before = [parameters(method, 2, i) for i in range(3)]
    with torch.no_grad():
        first, second = (method.predict(*images_of(method)) for _ in range(2))
    for i, adapters in enumerate(method.adapters):
        trained = [list(copy.parameters()) for copy in adapters.copies[:2]]
        for a, b, own, now in zip(*trained, before[i], parameters(method, 2, i), strict=True):
            mean = (a + b) / 2
            torch.testing.assert_close(now - mean, 0.8 ** (2 * 3) * (own - mean), rtol=1e-4, atol=1e-6)
    assert not torch.equal(first, second), "the second answer differs"


def test_as_released_block_i_uses_adapters_merged_i_plus_one_times_and_gradients_are_theirs():
    method, batch = begun(1, as_released=True, merge_momentum=0.2, depth=2)
    with torch.no_grad():
        for adapters in method.adapters:
            for p in adapters.members[1].parameters():
                p.add_(0.1)
    own = [parameters(method, 1, i) for i in range(2)]
    means = [list(adapters.copies[0].parameters()) for adapters in method.adapters]
    method.optimizer = torch.optim.SGD(method.trainable().values(), lr=0)
    loss = method.observe(batch)["loss"]
    gradients = [[p.grad for p in adapters.members[1].parameters()] for adapters in method.adapters]
    for i in range(2):
        for now, p, mean in zip(parameters(method, 1, i), own[i], means[i], strict=True):
            torch.testing.assert_close(now, mean + 0.8 ** (2 + 1) * (p - mean), rtol=1e-4, atol=1e-6)
    plain, _ = begun(1, depth=2)
    plain.net.load_state_dict(method.net.state_dict(), strict=False)
    with torch.no_grad():
        for i in range(2):
            values = (mean + 0.8 ** (i + 1) * (p - mean) for p, mean in zip(own[i], means[i], strict=True))
            for p, value in zip(plain.adapters[i].members[1].parameters(), values, strict=True):
                p.copy_(value)
    plain_loss = plain.loss(batch)
    plain_loss.backward()
    torch.testing.assert_close(loss, plain_loss.detach())
    for adapters, expected in zip(plain.adapters, gradients, strict=True):
        for p, gradient in zip(adapters.members[1].parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


def test_as_released_is_said_and_tagged(tmp_path):
    method, config = small_method("mos", as_released=True)
    assert sum("--as_released" in note for note in method.benchmark.notes) == 1
    assert run_tags(config.flat(), tmp_path)["as_released"] == "True"
    assert "as released" in method.capture(10)
    plain, _ = small_method("mos")
    assert not any("as_released" in note for note in plain.benchmark.notes)


@pytest.mark.parametrize("flags", [{}, {"n_tasks": 2, "half_classes_in_first_task": True}])
def test_prototypes_and_statistics_by_hand(flags):
    """w_c from the first task's adapters, μ_c and Σ_c from the task's own; tasks of 4 and 2 classes, too."""
    method = learned(2, **flags)
    task = method.benchmark.tasks[1]
    samples = method.benchmark.train(task)
    x = method.benchmark.augment.normalise(samples.x_raw)
    first, own = features(method, 0, x), features(method, 1, x)
    for c in task.classes:
        rows = samples.y == c
        torch.testing.assert_close(method.prototypes[c], first[rows].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(method.gaussians.means[c], own[rows].mean(0), rtol=1e-4, atol=1e-5)
        factor = method.gaussians.factors[c]
        expected = own[rows].T.cov() + 1e-4 * torch.eye(own.shape[1])
        torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-3, atol=1e-5)
    assert (method.prototypes.norm(dim=1) > 0).all() == (len(method.benchmark.tasks) == 2)


def test_what_alignment_is_given(monkeypatch):
    """All heads seen learn, from unscaled draws, by cross-entropy over the classes seen; then they rest."""
    given = {}

    def note(head, draw, loss, schedule, draws):
        learns = [next(layer.parameters()).requires_grad for layer in head.heads]
        given.update(draw=draw, loss=loss, schedule=schedule, learns=learns)

    monkeypatch.setattr(mos, "align", note)
    method = learned(2, ca_epochs=3, ca_samples=7, ca_lr=0.5, optim_wd=0.1)
    assert given["schedule"] == Schedule(3, 7, 7, 0.5, 0.1) and given["learns"] == [True, True, False]
    logits, y = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1])
    torch.testing.assert_close(given["loss"](logits, y), F.cross_entropy(logits[:, :4], y))
    drawn, labels = given["draw"]()
    assert labels.bincount().tolist() == [7] * 4 and drawn.shape == (28, 16)
    assert [next(layer.parameters()).requires_grad for layer in method.net.head.heads] == [False, True, False]


def test_each_task_has_an_adapter_of_the_wanted_size_in_every_block():
    method, _ = small_method("mos", adapter_size=5)
    members = [adapter for adapters in method.adapters for adapter in adapters.members]
    assert len(members) == 3 * method.net.depth
    assert all(adapter.down.weight.shape == (5, 16) for adapter in members)
