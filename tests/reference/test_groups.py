"""Accuracy by memorization, half of the classes first, samples left out: against loops over the source."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from engram.datasets import training_samples
from engram.datasets.scenarios import split_classes
from engram.models import build
from engram.utils.runs import excluded_samples
from engram.utils.runs.record_of_run import record_of
from engram.utils.scores import order_hash
from engram.utils.training import memorization_groups
from tests.conftest import synthetic_source, tiny_benchmark, tiny_config, tiny_method
from tests.contract.test_methods import train

SCORES = np.random.default_rng(0).uniform(-0.1, 1, 90)


@pytest.fixture
def score_file(tmp_path):
    np.save(tmp_path / "scores.npy", SCORES)
    return str(tmp_path / "scores.npy")


def by_hand(method, task, group: str, view: str) -> float:
    """Share of the task's training samples of a group that are predicted right, one sample at a time."""
    source, benchmark = synthetic_source(), method.setup.benchmark
    place = {original: new for new, original in enumerate(benchmark.class_order.tolist())}
    seen = sorted(c for t in benchmark.tasks for c in t.classes)
    hits = []
    method.net.eval()
    for i in range(90):
        level = "high" if SCORES[i] > 0.5 else "mid" if SCORES[i] > 0.2 else "low"
        label = place[int(source.train_y[i])]
        if level != group or label not in task.classes:
            continue
        x = task.transform(source.train_x[i : i + 1])
        logits = method.predict(benchmark.augment.normalise(x), torch.tensor([task.id]))[0].tolist()
        allowed = seen if view == "class_il" else sorted(task.classes)
        hits.append(max(allowed, key=logits.__getitem__) == label)
    return float(np.mean(hits)) if hits else float("nan")


@pytest.mark.parametrize(
    ("model", "scenario", "flags"),
    [
        ("sgd", "class-il", {"permute_classes": True, "seed": 5}),
        ("maer", "class-il", {"permute_classes": True, "seed": 3, "half_classes_in_first_task": True}),
        ("er", "domain-il", {}),
        ("joint", "class-il", {}),
    ],
)
def test_groups_follow_samples_whatever_the_order_of_classes(score_file, model, scenario, flags):
    flags = {**flags, "memorization_scores": score_file, "mem_thresholds": (0.2, 0.5), "lr": 0.2}
    method, config = tiny_method(model, scenario, **flags)
    _, results = train(method, config)
    last = len(method.setup.benchmark.tasks) - 1
    assert method.setup.benchmark.notes[-1] == "90 of 90 training samples have a score", "each counts once"
    for task in method.setup.benchmark.tasks:
        for group in memorization_groups.NAMES:
            for view, R in results.groups[group].items():
                expected = by_hand(method, task, group, view)
                assert R[last, task.id] == pytest.approx(expected, nan_ok=True)
    logged = results.task_metrics(last)
    for name, group in (("longtail", "high"), ("mid_mem", "mid"), ("low_mem", "low")):
        assert logged[f"acc_{name}_task_0"] == pytest.approx(100 * results.groups[group]["class_il"][last, 0])
        assert f"forgetting_{name}" in logged
    record = record_of(results, "finished", config.flat(), method.setup.benchmark)
    stored = record.to_json()["groups"]["high"]["class_il"]
    assert stored["R"][last] == results.groups["high"]["class_il"][last].tolist()
    once = model != "er"  # each domain presents all samples
    expected = (SCORES > 0.5).sum() * (1 if once else len(method.setup.benchmark.tasks))
    assert stored["n_samples"] == expected


def test_thresholds_are_those_of_the_paper():
    found = memorization_groups.assign(torch.tensor([0.1, 0.11, 0.25, 0.26, torch.nan]), (0.1, 0.25))
    assert found.tolist() == [2, 1, 1, 0, -1]


def test_unknown_scores_join_no_group_and_are_no_candidates(tmp_path):
    known = np.arange(0, 90, 2)
    labels = synthetic_source().train_y
    path = tmp_path / "half.npz"
    np.savez(path, scores=SCORES[known], index=known, order_hash=order_hash(labels))
    method, config = tiny_method("maer", memorization_scores=str(path), buffer_size=12)
    assert method.setup.benchmark.notes[-1] == (
        "45 of 90 training samples have a score; only these are in its groups, or chosen by score "
        "(--exclude unscored trains on them alone)"
    )
    chosen, choose = [], method.chooser.choose

    def watched(task, n):
        rows = choose(task, n)
        chosen.extend(method.setup.benchmark.train(task).index[rows].tolist())
        return rows

    method.chooser.choose = watched
    train(method, config)
    assert chosen and not set(chosen) - set(known.tolist())


def test_half_of_the_classes_first():
    assert split_classes(10, 3, half_first=True) == [(0, 1, 2, 3, 4), (5, 6, 7), (8, 9)]
    assert split_classes(7, 2, half_first=True) == [(0, 1, 2), (3, 4, 5, 6)]
    for n_tasks in (1, 7):
        with pytest.raises(ValueError, match="2 to 6 tasks with --half_classes_in_first_task"):
            split_classes(10, n_tasks, half_first=True)
    benchmark = tiny_benchmark(tiny_config(half_classes_in_first_task=True))
    assert benchmark.class_masks.int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_task_il_looks_at_all_classes_of_a_large_first_task():
    """After the whole stream the task-IL accuracy on task 0 is an argmax over its three classes."""
    method, config = tiny_method("sgd", half_classes_in_first_task=True)
    _, results = train(method, config)
    samples = method.setup.benchmark.test(1)
    method.net.eval()
    logits = method.predict(method.setup.benchmark.augment.normalise(samples.x_raw), samples.task_id)
    expected = (logits[:, :3].argmax(1) == samples.y).double().mean()
    assert results.R["task_il"][-1, 0] == pytest.approx(float(expected))


def test_unscored_leaves_out_what_the_vector_of_a_fraction_says_nothing_of(tmp_path):
    """A third of the 90 samples has a score: scikit-learn's draw says which."""
    np.save(tmp_path / "third.npy", SCORES[:30])
    flags = {"memorization_scores": str(tmp_path / "third.npy"), "memorization_fraction": 1 / 3}
    method, config = tiny_method("sgd", exclude="unscored", **flags)
    labels = synthetic_source().train_y.numpy()
    scored = train_test_split(np.arange(90), test_size=1 / 3, random_state=42, stratify=labels)[1]
    left_out = build.excluded_positions(config, method.setup.benchmark)
    assert left_out.tolist() == sorted(set(range(90)) - set(scored.tolist())) and len(left_out) == 60
    training_samples.exclude(method.setup.benchmark, left_out)
    said = build.scored(method.setup.scores, method.setup.benchmark)
    assert said == "30 of 30 training samples have a score"


@pytest.mark.parametrize("model", ["er", "joint"])
def test_what_is_excluded_is_never_seen(model):
    method, config = tiny_method(model)
    benchmark, out = method.setup.benchmark, torch.arange(0, 90, 3)
    before = sum(len(t.train_index) for t in benchmark.tasks)
    training_samples.exclude(benchmark, out)
    seen, observe = set(), method.observe

    def watched(batch):
        seen.update(batch.index.tolist())
        return observe(batch)

    method.observe = watched
    train(method, config)
    assert seen == set(range(90)) - set(out.tolist()) and before == 90
    with pytest.raises(ValueError, match="--exclude leaves task 0 no training sample"):
        training_samples.exclude(benchmark, torch.arange(90))


def test_files_of_exclusions(tmp_path):
    h = order_hash(synthetic_source().train_y)
    np.save(tmp_path / "positions.npy", np.array([7, 3, 7]))
    np.save(tmp_path / "mask.npy", np.arange(90) < 2)
    np.savez(tmp_path / "made.npz", exclude=np.array([5]), order_hash=h)
    expected = {"positions.npy": [3, 7], "mask.npy": [0, 1], "made.npz": [5]}
    for name, positions in expected.items():
        assert excluded_samples.read(str(tmp_path / name), 90, h).tolist() == positions
    np.save(tmp_path / "far.npy", np.array([90]))
    np.save(tmp_path / "short.npy", np.ones(3, dtype=bool))
    np.save(tmp_path / "scores.npy", np.ones(90))
    np.savez(tmp_path / "other.npz", exclude=np.array([5]), order_hash="ff")
    np.savez(tmp_path / "empty.npz", index=np.array([5]))
    for name, message in {
        "far.npy": "positions below 90", "short.npy": "mask of 90 booleans", "scores.npy": "found float64",
        "other.npz": "another data set", "empty.npz": "no array called 'exclude'", "none.npy": "no such file",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            excluded_samples.read(str(tmp_path / name), 90, h)
