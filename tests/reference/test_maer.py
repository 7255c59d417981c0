"""maer: what the memory holds after a task, against the paper's procedure written as a loop."""

import numpy as np
import pytest
import torch

from engram.utils.scores import order_hash
from tests.conftest import tiny_method
from tests.contract.test_methods import train


def contents(method, task: int) -> dict[int, list[int]]:
    """Label → sorted positions in the training set held for a task."""
    stored = method.buffer.stored()
    mine = stored["task_id"] == task
    held = {}
    for y, index in zip(stored["y"][mine].tolist(), stored["index"][mine].tolist(), strict=True):
        held.setdefault(y, []).append(index)
    return {y: sorted(v) for y, v in held.items()}


@pytest.mark.parametrize("policy", ["min", "max", "middle"])
def test_the_memory_holds_what_the_policy_takes_from_the_learning_order(policy):
    """The order is recorded by hand while the network learns: append when right, remove when wrong."""
    method, config = tiny_method("maer", buffer_policy=policy, buffer_size=12, n_epochs=4, lr=0.1)
    order = []
    note = method.chooser.proxy.note

    def recording(index, correct):
        for i, right in zip(index.tolist(), correct.tolist(), strict=True):
            if i in order and not right:
                order.remove(i)
            elif i not in order and right:
                order.append(i)
        note(index, correct)

    method.chooser.proxy.note = recording
    train(method, config, tasks=1)
    samples = method.setup.benchmark.train(method.setup.benchmark.tasks[0])
    labels = dict(zip(samples.index.tolist(), samples.y.tolist(), strict=True))
    for label, held in contents(method, 0).items():
        mine, k = [i for i in order if labels[i] == label], len(held)
        start = {"min": 0, "max": len(mine) - k, "middle": (len(mine) - k) // 2}[policy]
        assert held == sorted(mine[start : start + k])
        assert k == 6, "12 places, two classes"


def test_given_scores_follow_samples_under_permuted_classes(folder):
    """Bottom-k by score, per class, whatever order the seed gives the classes."""
    scores = np.random.default_rng(0).permutation(90) / 90
    np.save(folder / "scores.npy", scores)
    flags = {"permute_classes": True, "seed": 5, "memorization_scores": str(folder / "scores.npy")}
    method, config = tiny_method("maer", buffer_policy="min", buffer_size=12, **flags)
    chosen, end_task = {}, method.end_task

    def watched(task):
        end_task(task)
        chosen.update({y: (task.id, held) for y, held in contents(method, task.id).items()})

    method.end_task = watched
    train(method, config)
    benchmark = method.setup.benchmark
    assert benchmark.class_order.tolist() != list(range(6)) and set(chosen) == set(range(6))
    source_labels = torch.arange(6).repeat(20)[:90].numpy()
    for y, (task, held) in chosen.items():
        mine = np.flatnonzero(source_labels == benchmark.class_order[y])
        lowest = sorted(mine.tolist(), key=lambda i: scores[i])[: len(held)]
        assert held == sorted(lowest), f"class {y} of task {task}"


def test_scores_of_another_sample_order_are_refused(folder):
    wrong = order_hash(torch.arange(90))
    np.savez(folder / "scores.npz", scores=np.zeros(90), order_hash=wrong)
    with pytest.raises(ValueError, match="another data set or sample order"):
        tiny_method("maer", memorization_scores=str(folder / "scores.npz"))


def test_samples_are_stored_with_their_images_and_labels():
    method, config = tiny_method("maer", buffer_policy="max", buffer_size=10)
    train(method, config)
    stored, benchmark = method.buffer.stored(), method.setup.benchmark
    for task in benchmark.tasks:
        samples = benchmark.train(task)
        where = {i: n for n, i in enumerate(samples.index.tolist())}
        for x, y, t, i in zip(*(stored[f] for f in ("x", "y", "task_id", "index")), strict=True):
            if t == task.id:
                assert torch.equal(x, samples.x_raw[where[i.item()]]) and y == samples.y[where[i.item()]]
