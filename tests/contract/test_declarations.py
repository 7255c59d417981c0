"""What a method's class says of it is true: that it rehearses, needs task boundaries, starts tasks afresh.

The trainer acts on these declarations and no result fails at once where one is wrong: heads of old tasks
would stay frozen, a stream without tasks would be accepted, one task's notes be taken for the next one's.
"""

import pytest
import torch

from engram.models.method import Method
from engram.utils.training.optimizers import build_optimizer
from tests.contract.test_methods import HAVE_MEMORY, MODELS, classes_of, small_method, train, weights

REHEARSES = [m for m in MODELS if classes_of(m).rehearses]
WITH_HEADS = [m for m in MODELS if "task-il" in classes_of(m).scenarios]


def of_head(method: Method, task: int) -> dict[str, torch.Tensor]:
    """Copies of the parameters of a task's own head."""
    return {name: p.clone() for name, p in weights(method).items() if name.startswith(f"head.heads.{task}.")}


@pytest.mark.parametrize("model", MODELS)
def test_a_method_that_trains_on_old_samples_says_so(model):
    """With a memory, or on a stream whose tasks present old data again."""
    method, _ = small_method(model)
    assert method.rehearses == (hasattr(method, "buffer") or method.stream != "sequential")


@pytest.mark.parametrize("model", [m for m in WITH_HEADS if m in REHEARSES])
def test_the_heads_of_old_tasks_go_on_learning_where_old_samples_are_replayed(model):
    method, config = small_method(model, "task-il", **({"buffer_size": 24} if model in HAVE_MEMORY else {}))
    assert method.rehearses
    for task in method.benchmark.tasks[1:]:
        method.enter(task)
        frozen = [name for name, p in method.net.named_parameters() if not p.requires_grad]
        assert not frozen, "every head learns"
    if method.stream == "sequential":
        train(method, config, tasks=1)
        before = of_head(method, 0)
        train_second_task(method, config)
        assert before and any(not torch.equal(p, of_head(method, 0)[name]) for name, p in before.items())


@pytest.mark.parametrize("model", [m for m in WITH_HEADS if not classes_of(m).rehearses])
def test_the_heads_of_old_tasks_rest_where_nothing_is_replayed(model):
    """Unless the method itself lets them learn from what it distils (`enter` is its own)."""
    method, _ = small_method(model, "task-il")
    if classes_of(model).enter is not Method.enter:
        return
    method.enter(method.benchmark.tasks[1])
    assert not any(name.startswith("head.heads.0.") for name in method.trainable())


def train_second_task(method: Method, config) -> None:
    """All steps of the second task, and its end."""
    task = method.benchmark.tasks[1]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    for batch in method.benchmark.batches(task, 0, config.train.batch_size):
        method.observe(batch)
    method.end_task(task)


def overrides(model: str, *hooks: str) -> bool:
    """Whether the class, or one it extends, has such a hook of its own."""
    return any(getattr(classes_of(model), hook) is not getattr(Method, hook) for hook in hooks)


@pytest.mark.parametrize("model", [m for m in MODELS if overrides(m, "begin_task", "end_task")])
def test_a_method_that_does_something_between_tasks_needs_to_know_them(model):
    """Or its steps train nothing, so that the end of any stream is where it learns (GDumb)."""
    if classes_of(model).needs_boundaries:
        return
    method, config = small_method(model)
    task = method.benchmark.tasks[0]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    before = weights(method)
    for batch in method.benchmark.batches(task, 0, config.train.batch_size):
        method.observe(batch)
    assert all(torch.equal(before[name], p) for name, p in weights(method).items()), (
        "it learns in its steps and acts between tasks: declare needs_boundaries"
    )
    method.end_task(task)
    assert any(not torch.equal(before[name], p) for name, p in weights(method).items())


@pytest.mark.parametrize("model", [m for m in MODELS if classes_of(m).stream == "sequential"])
def test_a_method_that_reads_the_current_task_in_its_steps_needs_to_know_it(model):
    """Without boundaries steps are the same, whether the method is told of the second task or not."""
    if classes_of(model).needs_boundaries:
        return
    scenarios, trained = classes_of(model).scenarios, []
    for told in (0, 1):
        method, config = small_method(model, "domain-il" if "domain-il" in scenarios else scenarios[0])
        tasks = method.benchmark.tasks
        for task in tasks[:2]:
            method.enter(tasks[min(task.id, told)])
            method.optimizer = build_optimizer(method.trainable().items(), config.train)
            for batch in method.benchmark.batches(task, 0, config.train.batch_size):
                method.observe(batch)
        trained.append(weights(method))
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name


CHOOSERS = [m for m in MODELS if hasattr(classes_of(m), "chooser") or m.startswith("maer")]


@pytest.mark.parametrize("model", CHOOSERS)
def test_memorization_is_measured_anew_in_every_task(model):
    """A proxy knows nothing when a task begins. It shows with domains: their tasks share samples."""
    scenario = "domain-il" if "domain-il" in classes_of(model).scenarios else "class-il"
    method, config = small_method(model, scenario)
    fresh = flat(small_method(model, scenario)[0].chooser.proxy.state_dict())
    train(method, config, tasks=1)
    noted = flat(method.chooser.proxy.state_dict())
    assert any(not same(noted[name], value) for name, value in fresh.items()), "it has noted something"
    method.enter(method.benchmark.tasks[1])
    method.begin_task(method.benchmark.tasks[1])
    renewed = flat(method.chooser.proxy.state_dict())
    assert renewed.keys() == fresh.keys()
    for name, value in fresh.items():
        assert same(renewed[name], value), name


def flat(state: dict, prefix: str = "") -> dict:
    """Nested dicts as one, keys joined by dots; tensors are copied."""
    result = {}
    for key, value in state.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value.clone() if isinstance(value, torch.Tensor) else value
    return result


def same(a: object, b: object) -> bool:
    """Equal tensors, NaN being equal to itself, or equal values."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(nan=-1e9), b.nan_to_num(nan=-1e9))
    return type(a) is type(b) and a == b
