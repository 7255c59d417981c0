"""FDR, the full buffer and cumulative training against naive transcriptions: lists, loops, the same draws."""

import pytest
import torch
import torch.nn.functional as F

from engram.utils.buffers.reservoir import distinct
from tests.conftest import tiny_method
from tests.contract.test_methods import train
from tests.reference.naive import LR, SCENARIOS, K, trained
from tests.reference.test_mer_baselines import assert_equal_networks, descend


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fdr_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("fdr", scenario, alpha=0.8, buffer_size=16, minibatch_size=K)
    benchmark, memory = twin.setup.benchmark, []
    for number, (task, batch) in enumerate(steps):
        loss = F.cross_entropy(twin.net(batch.x), batch.y)
        if memory:
            rows = distinct(len(memory), min(K, len(memory)), twin.buffer.generator).tolist()
            gaps = [twin.net(memory[r][0][None]).softmax(1)[0] - memory[r][1] for r in rows]
            loss = loss + 0.8 * sum(((gap**2).sum() + 1e-12).sqrt() for gap in gaps) / len(gaps)
        descend(list(twin.net.parameters()), loss, LR)
        if number + 1 == len(steps) or steps[number + 1][0] != task:
            share = {0: [16], 1: [8, 8], 2: [6, 5, 5]}[task]
            samples = benchmark.train(benchmark.tasks[task])
            rows = distinct(len(samples.y), share[-1], twin.draws)
            x = benchmark.augment.normalise(samples.x_raw[rows])
            p = twin.net(x).softmax(1).detach()
            kept = [s for t in range(task) for s in [m for m in memory if m[2] == t][: share[t]]]
            memory = [*kept, *((a, b, task) for a, b in zip(x, p, strict=True))]
    assert_equal_networks(method.net, twin.net)
    assert method.buffer.stored()["task_id"].bincount().tolist() == [6, 5, 5]
    torch.testing.assert_close(method.buffer.stored()["p"], torch.stack([m[1] for m in memory]))


@pytest.mark.parametrize("order", ["uniform", "grasp"])
def test_the_full_buffer_holds_all_past_tasks_and_replays_them(order):
    method, config = tiny_method("full_buffer", order=order, n_epochs=2)
    replayed, queued, replay = [], [], method.replay

    def noting():
        queued.append(len(method.queue))
        found = replay()
        replayed.append((method.task.id, None if found is None else found.task_id.tolist()))
        return found

    method.replay = noting
    train(method, config)
    stored, benchmark = method.buffer.stored(), method.setup.benchmark
    assert sorted(stored["index"].tolist()) == list(range(benchmark.n_train))
    assert all(found is None for task, found in replayed if task == 0)
    later = [(task, found) for task, found in replayed if task > 0]
    assert all(len(found) == config.train.batch_size and max(found) < task for task, found in later)
    assert {t for task, found in later if task == 2 for t in found} == {0, 1}
    steps = 2 * 8  # epochs × steps: as many are queued as are needed
    assert queued == [0] * steps + 2 * [4 * n * (order == "grasp") for n in range(steps, 0, -1)]
    assert train(*tiny_method("full_buffer", order=order, n_epochs=2))[1].memory[1].per_task == [30, 30, 0]


def test_grasp_draws_for_every_step_of_a_task():
    method, config = tiny_method("full_buffer", order="grasp", n_iters=20)
    queued, replay = [], method.replay
    method.replay = lambda: queued.append(len(method.queue)) or replay()
    train(method, config, tasks=2)
    assert queued == [0] * 20 + [4 * n for n in range(20, 0, -1)]


def test_cumulative_presents_all_tasks_so_far():
    method, config = tiny_method("cumulative")
    met = []
    observe = method.observe
    method.observe = lambda batch: met.append((method.task.id, batch.task_id.tolist())) or observe(batch)
    _, results = train(method, config)
    for task in range(3):
        drawn = [t for own, ids in met if own == task for t in ids]
        assert [drawn.count(t) for t in range(3)] == [30 if t <= task else 0 for t in range(3)]
    assert torch.tensor(results.R["class_il"]).isfinite().tril().sum() == 6
