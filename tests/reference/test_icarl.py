"""iCaRL and the exemplar memory: herding, quotas, the loss and the nearest mean against plain loops."""

import math

import pytest
import torch

from engram.models.parts.exemplars import class_means, nearest_mean
from engram.utils.buffers.exemplar_memory import ExemplarMemory
from engram.utils.buffers.selection import herding
from tests.conftest import tiny_method
from tests.contract.test_methods import steps, train


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- herding --------------------------------------------------------------------------------------


def herding_by_trying_all(features: torch.Tensor, k: int) -> list[int]:
    """Algorithm 4 as it is written: at each step the mean of every possible extension."""
    vectors = features.double()
    mean, chosen = vectors.mean(0), []
    while len(chosen) < k:
        left = [i for i in range(len(vectors)) if i not in chosen]
        chosen.append(min(left, key=lambda i: (mean - vectors[[*chosen, i]].mean(0)).norm().item()))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_equals_trying_every_extension(seed):
    features = torch.nn.functional.normalize(random(30, 4, seed=seed), dim=1)
    assert herding(features, 30).tolist() == herding_by_trying_all(features, 30)
    assert herding(features, 7).tolist() == herding(features, 30)[:7].tolist(), (
        "prefixes are shorter selections"
    )


def test_herding_of_few_or_none():
    assert herding(random(3, 2), 5).sort().values.tolist() == [0, 1, 2]
    assert herding(random(3, 2), 0).tolist() == []


@pytest.mark.parametrize(("model", "scenario"), [("icarl", "class-il"), ("herding", "domain-il")])
def test_exemplars_are_herded_by_normalised_features_class_by_class(model, scenario):
    method, config = tiny_method(model, scenario, buffer_size=20)
    train(method, config, tasks=1)
    benchmark, stored = method.setup.benchmark, method.buffer.stored()
    samples = benchmark.train(benchmark.tasks[0])
    with torch.no_grad():
        found = method.net.features(benchmark.augment.normalise(samples.x_raw))
    for label in benchmark.tasks[0].classes:
        mine = samples.y == label
        vectors = [f / f.norm() for f in found[mine].double()]
        held = stored["index"][stored["y"] == label].tolist()
        assert len(held) == -(-(20 - label) // len(benchmark.tasks[0].classes))
        expected = herding_by_trying_all(torch.stack(vectors), len(held))
        assert held == samples.index[mine][expected].tolist()


# --- the memory -----------------------------------------------------------------------------------


def filled(
    scenario: str, size: int, n_tasks: int = 3, reselect: bool = False
) -> tuple[ExemplarMemory, object]:
    """A memory that has been given tasks in order, choosing each group's last samples, last first."""
    method, _ = tiny_method("icarl", scenario, buffer_size=size)
    memory = method.buffer
    for task in method.setup.benchmark.tasks[:n_tasks]:
        fields = method.task_samples(task)
        memory.renew(task.id, lambda rows, k: rows.flip(0)[:k], reselect=reselect, **fields)
    return memory, method


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
@pytest.mark.parametrize(("size", "n_tasks"), [(18, 1), (19, 3), (20, 1), (20, 2), (20, 3), (10_000, 3)])
def test_every_class_of_every_task_has_its_share_best_first(scenario, size, n_tasks):
    memory, method = filled(scenario, size, n_tasks)
    tasks = method.setup.benchmark.tasks[:n_tasks]
    groups = [(task.id, c) for task in tasks for c in task.classes]
    stored = memory.stored()
    assert len(memory) == len(stored["y"]) <= size
    for i, (t, c) in enumerate(groups):
        samples = method.setup.benchmark.train(tasks[t])
        mine = [j for j, y in zip(samples.index.tolist(), samples.y.tolist(), strict=True) if y == c]
        quota = math.ceil((size - i) / len(groups))
        held = stored["index"][(stored["y"] == c) & (stored["task_id"] == t)].tolist()
        assert held == mine[::-1][:quota], (t, c)


def test_choosing_again_sees_what_is_stored_and_what_is_new():
    """Every old group is offered to the choice, and reversed by it at every task."""
    memory, method = filled("class-il", 24, reselect=True)
    stored, samples = memory.stored(), method.setup.benchmark.train(method.setup.benchmark.tasks[0])
    mine = samples.index[samples.y == 0].tolist()
    first = mine[::-1][:12]  # after task 0: 12 slots each; then 6 of them, then 4 of those
    assert stored["index"][stored["y"] == 0].tolist() == first[::-1][:6][::-1][:4]


def test_shares_show_every_exemplar_once_per_epoch():
    memory, _ = filled("class-il", 20)
    epochs = [[memory.share(7)["index"] for _ in range(7)] for _ in range(3)]
    everything = sorted(memory.stored()["index"].tolist())
    for shares in epochs:
        assert {len(share) for share in shares} == {2, 3}
        assert sorted(torch.cat(shares).tolist()) == everything
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()


def test_a_share_continues_after_loading():
    memory, method = filled("class-il", 20)
    memory.share(7)
    other = ExemplarMemory(20, method.setup)
    other.load_state_dict(memory.state_dict())
    for _ in range(8):
        assert torch.equal(memory.share(7)["index"], other.share(7)["index"])


@pytest.mark.parametrize("size", [0, 3])
def test_a_union_replays_each_exemplar_once_or_a_fixed_number(size):
    """The second task has 30 samples in 8 steps; 34 exemplars once, or 3 in every step."""
    method, _ = tiny_method("icarl", buffer_size=34, minibatch_size=size)
    benchmark, (first, second, _) = method.setup.benchmark, method.setup.benchmark.tasks
    method.enter(first)
    method.end_task(first)
    method.enter(second)
    seen = [method.union(batch) for batch in benchmark.batches(second, 0, 4)]
    old = torch.cat([batch.index[batch.task_id == 0] for batch in seen])
    assert len(seen) == 8
    n_stored = len(method.buffer)
    assert len(old) == (n_stored if size == 0 else 24)
    if size == 0:
        assert sorted(old.tolist()) == sorted(method.buffer.stored()["index"].tolist())


# --- the method -----------------------------------------------------------------------------------


def test_nearest_mean_equals_a_loop():
    feats, y, queries = random(40, 5), torch.randint(4, (40,)), random(9, 5, seed=1)
    y[y == 2] = 3  # class 2 has no samples
    scores = nearest_mean(queries, class_means(feats, y, 4))
    for n, query in enumerate(queries):
        for c in range(4):
            mine = [f / f.norm() for f, label in zip(feats, y, strict=True) if label == c]
            if not mine:
                assert scores[n, c] == scores.min() == torch.finfo(torch.float32).min
                continue
            mean = sum(mine) / len(mine)
            distance = (query / query.norm() - mean / mean.norm()).square().sum()
            torch.testing.assert_close(scores[n, c], -distance, rtol=1e-5, atol=1e-5)


def test_prediction_uses_the_exemplars_as_the_network_now_sees_them():
    """After more steps the means are those of the stored images under the new weights."""
    method, config = tiny_method("icarl", buffer_size=12)
    train(method, config, tasks=2)
    steps(method, config)
    method.net.eval()
    benchmark, stored = method.setup.benchmark, method.buffer.stored()
    x = benchmark.augment.normalise(benchmark.test(3).x_raw)
    with torch.no_grad():
        scores = method.predict(x, None)
        means = class_means(method.net.features(benchmark.augment.normalise(stored["x"])), stored["y"], 6)
        torch.testing.assert_close(scores, nearest_mean(method.net.features(x), means))
    assert (scores[:, 4:] == scores.min()).all(), "classes to come have no exemplars"


def test_inside_a_task_its_classes_are_known_by_their_data():
    method, config = tiny_method("icarl", buffer_size=12)
    train(method, config, tasks=1)
    steps(method, config)
    known = ~method_means(method).isnan().any(1)
    assert known.tolist() == [True, True, True, True, False, False]


def method_means(method) -> torch.Tensor:
    return method.stored_means()


@pytest.mark.parametrize(("form", "n_classes", "n_terms"), [("sum", 4, 7), ("mean", 6, 7 * 6)])
def test_loss_equals_the_papers_sum_and_its_codes_mean(form, n_classes, n_terms):
    """Old classes: distilled targets, for every sample; the task's own: labels.

    Classes to come: nothing in the sum over four classes, target 0 in the mean over all six.
    """
    method, config = tiny_method("icarl", buffer_size=6, minibatch_size=3, icarl_loss=form)
    train(method, config, tasks=1)
    steps(method, config)
    batch = next(method.setup.benchmark.batches(method.task, 0, 4))
    seen, union = [], method.union
    method.union = lambda batch: seen.append(union(batch)) or seen[-1]
    loss = method.loss(batch)
    (samples,) = seen
    assert len(samples.y) == 4 + 3 and set(samples.task_id.tolist()) == {0, 1}
    total = 0.0
    for x, y in zip(samples.x, samples.y.tolist(), strict=True):
        g = [1 / (1 + math.exp(-z)) for z in method.net(x[None])[0].tolist()]
        q = [1 / (1 + math.exp(-z)) for z in method.teacher(x[None])[0].tolist()]
        for c in range(n_classes):
            target = q[c] if c < 2 else float(y == c)
            total -= target * math.log(g[c]) + (1 - target) * math.log(1 - g[c])
    assert loss.item() == pytest.approx(total / n_terms, rel=1e-5)
    assert any(not torch.equal(a, b) for a, b in zip(
        method.net.parameters(), method.teacher.parameters(), strict=True
    )), "the teacher stays as the last task left it"  # fmt: skip


def test_without_a_memory_the_outputs_decide():
    method, config = tiny_method("icarl", buffer_size=0)
    train(method, config)
    x = method.setup.benchmark.augment.normalise(method.setup.benchmark.test(3).x_raw)
    assert torch.equal(method.predict(x, None), method.net(x))
