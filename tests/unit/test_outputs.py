"""--scenario: tasks of different classes as domains, and domains with outputs of their own."""

import pytest
import torch

from engram.datasets.augment import Augment
from engram.datasets.streams import class_incremental, domain_incremental
from engram.utils.errors import UserError
from engram.utils.training.evaluation import accuracies
from tests.conftest import synthetic_source, tiny_config, tiny_method


def classes_as(scenario: str | None, **flags):
    config = tiny_config("sgd", scenario=scenario, **flags)
    return class_incremental("tiny", synthetic_source(), Augment(), config, "cpu")


def domains_as(scenario: str | None, **flags):
    config = tiny_config("sgd", scenario=scenario, **flags)
    changes = [lambda raw, k=k: raw.roll(k, -1) for k in range(config.stream.n_tasks)]
    return domain_incremental("tiny", synthetic_source(), Augment(), changes, config, "cpu")


def test_classes_as_domains():
    """Task t's classes 2t and 2t + 1 become outputs 0 and 1; images and their order stay."""
    own, same = classes_as(None), classes_as("domain-il")
    assert (own.scenario, same.scenario, same.n_classes) == ("class-il", "domain-il", 2)
    assert same.class_names == own.class_names and same.class_order.tolist() == own.class_order.tolist()
    assert same.class_masks.all() and same.class_masks.shape == (3, 2)
    for task, domain in zip(own.tasks, same.tasks, strict=True):
        assert domain.classes == (0, 1)
        for field in ("train", "test_of"):
            a, b = getattr(own, field)(task), getattr(same, field)(domain)
            assert torch.equal(a.x_raw, b.x_raw) and torch.equal(a.index, b.index)
            assert torch.equal(a.y - 2 * task.id, b.y)
    assert same.test(3).y.unique().tolist() == [0, 1]


def test_domains_as_classes():
    same, own = domains_as(None), domains_as("class-il")
    assert (same.scenario, own.scenario, own.n_classes) == ("domain-il", "class-il", 18)
    assert own.class_names == same.class_names
    for task, domain in zip(own.tasks, same.tasks, strict=True):
        assert task.classes == tuple(range(6 * task.id, 6 * task.id + 6))
        a, b = own.train(task), same.train(domain)
        assert torch.equal(a.x_raw, b.x_raw) and torch.equal(a.y, b.y + 6 * task.id)
    assert (
        own.class_masks.sum(1).tolist() == [6, 6, 6] and own.class_masks.sum() == own.class_masks.any(0).sum()
    )
    for batch in own.batches(own.tasks[2], 0, 4):
        assert batch.y.min() >= 12


def test_permuted_classes_as_domains():
    own, same = classes_as(None, permute_classes=True), classes_as("domain-il", permute_classes=True)
    assert same.class_order.tolist() == own.class_order.tolist() != list(range(6))
    assert torch.equal(own.train(own.tasks[2]).y - 4, same.train(same.tasks[2]).y)


@pytest.mark.parametrize("make", [classes_as, domains_as])
def test_task_il_is_multi_head(make):
    by_scenario, by_flag = make("task-il"), make(None, multi_head=True)
    assert by_scenario.scenario == by_flag.scenario == "task-il"
    assert [t.classes for t in by_scenario.tasks] == [t.classes for t in by_flag.tasks]


@pytest.mark.parametrize("make", [classes_as, domains_as])
def test_the_benchmarks_own_scenario_may_be_named(make):
    plain = make(None)
    named = make(plain.scenario)
    assert [t.classes for t in named.tasks] == [t.classes for t in plain.tasks]
    assert torch.equal(named.test(3).y, plain.test(3).y)


def test_accuracy_of_domains_has_one_view():
    config = tiny_config("sgd", scenario="domain-il")
    benchmark = classes_as("domain-il")
    method, _ = tiny_method("sgd")
    method.setup = type(method.setup)(benchmark, config.train, 0)
    method.predict = lambda x, task_id: torch.tensor([1.0, 0.0]).expand(len(x), 2)
    found = accuracies(method, 3, 3)
    expected = torch.stack([(benchmark.test_of(task).y == 0).double().mean() for task in benchmark.tasks])
    torch.testing.assert_close(found[:, 0], expected)
    assert torch.equal(found[:, 0], found[:, 1])


def test_unequal_tasks_cannot_be_domains():
    with pytest.raises(UserError, match="with --n_tasks 4 they have 1 to 2"):
        classes_as("domain-il", n_tasks=4)


def test_two_scenarios_at_once_are_refused():
    with pytest.raises(UserError, match="leave it or --scenario domain-il out"):
        tiny_config("sgd", scenario="domain-il", multi_head=True)
    with pytest.raises(UserError, match="choose one of class-il, domain-il, task-il"):
        tiny_config("sgd", scenario="online")
