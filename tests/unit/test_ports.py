"""The benchmark and the method fulfil the trainer's Protocols; mypy checks this file, too (`make lint`)."""

import inspect

from engram.datasets.benchmark import Batch, Benchmark, Task
from engram.models.method import Method
from engram.utils.training import ports
from tests.conftest import tiny_method


def learner_of(method: Method) -> ports.Learner[Task, Batch]:
    """Type-checks only while Method has everything that a Learner must have, with its types."""
    return method


def stream_of(benchmark: Benchmark) -> ports.Stream[Task, Batch]:
    """Type-checks only while Benchmark has everything that a Stream must have, with its types."""
    return benchmark


def members(protocol: type) -> set[str]:
    """The names that a Protocol asks for."""
    names = set(protocol.__annotations__) | set(vars(protocol))
    return {name for name in names if not name.startswith("_")}


def test_the_protocols_ask_for_something() -> None:
    assert {"observe", "optimizer", "stored_samples"} <= members(ports.Learner)
    assert {"batches", "scenario", "class_masks"} <= members(ports.Stream)


def test_a_method_and_its_benchmark_have_what_the_protocols_ask_for() -> None:
    method, _ = tiny_method("er")
    benchmark = stream_of(method.setup.benchmark)
    pairs = [
        (learner_of(method), ports.Learner),
        (method.setup, ports.LearnerSetup),
        (benchmark, ports.Stream),
        (benchmark.tasks[0], ports.StreamTask),
        (next(benchmark.batches(benchmark.tasks[0], 0, 2)), ports.StreamBatch),
        (benchmark.augment, ports.Normaliser),
    ]
    for value, protocol in pairs:
        missing = {name for name in members(protocol) if not hasattr(value, name)}
        assert not missing, f"{type(value).__name__} is no {protocol.__name__}: it lacks {missing}"


def test_parameters_have_the_names_that_the_protocols_give_them() -> None:
    for fulfils, protocol in ((Method, ports.Learner), (Benchmark, ports.Stream)):
        for name in members(protocol):
            if inspect.isfunction(vars(protocol).get(name)):
                ours = inspect.signature(getattr(fulfils, name)).parameters
                assert list(ours) == list(inspect.signature(vars(protocol)[name]).parameters), name
