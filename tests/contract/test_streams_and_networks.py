"""What a benchmark and a backbone owe the trainer; scripts/check_plugin.py puts other files through it."""

import pytest
import torch

from engram.backbones.backbone import Backbone, build_network
from engram.datasets.benchmark import Benchmark
from engram.utils.config import registry
from engram.utils.config.config import resolve
from tests.conftest import DEVICE, tiny_benchmark, tiny_config, under_test

BENCHMARKS = under_test(
    "datasets", "seq-digits"
)  # the only one without files; tests/unit/test_streams.py has the others
BACKBONES = under_test("backbones", "mlp", "cnn")


def built(dataset: str) -> Benchmark:
    config = resolve([("test", {"model": "sgd", "dataset": dataset, "disable_log": True, "device": "cpu"})])
    return registry.load("datasets", dataset).build(config, torch.device("cpu"))


@pytest.fixture(scope="module", params=BENCHMARKS)
def benchmark(request) -> Benchmark:
    return built(request.param)


def documented(kind: str, name: str) -> bool:
    first = (registry.load(kind, name).__doc__ or "").split("\n")[0]
    return first.endswith(".") and len(first) <= 100


@pytest.mark.parametrize("dataset", BENCHMARKS)
def test_the_benchmark_is_documented(dataset):
    assert documented("datasets", dataset), (
        "the first docstring line is the --help line and ends with a period"
    )


def test_labels_are_those_of_the_tasks(benchmark):
    """In every batch of every task, and in the test set of each."""
    for task in benchmark.tasks:
        batch = next(benchmark.batches(task, 0, 16))
        assert set(batch.y.tolist()) <= set(task.classes) and set(batch.task_id.tolist()) == {task.id}
        assert max(task.classes) < benchmark.n_classes
    samples = benchmark.test(len(benchmark.tasks))
    for task in benchmark.tasks:
        of_task = samples.y[samples.task_id == task.id]
        assert len(of_task), f"task {task.id} has no test samples"
        assert set(of_task.tolist()) <= set(task.classes)


def test_images_have_the_shape_that_the_network_is_built_for(benchmark):
    batch = next(benchmark.batches(benchmark.tasks[0], 0, 4))
    assert batch.x.shape == (4, *benchmark.input_shape) and batch.x.dtype == torch.float32
    assert torch.isfinite(batch.x).all()
    assert batch.y.dtype == torch.int64


@pytest.mark.parametrize("dataset", BENCHMARKS)
def test_the_same_seed_gives_the_same_stream(dataset):
    first, second = (next(b.batches(b.tasks[-1], 0, 16)) for b in (built(dataset), built(dataset)))
    assert torch.equal(first.x, second.x) and torch.equal(first.index, second.index)


def network(name: str, seed: int = 0, scenario: str = "class-il") -> Backbone:
    config = tiny_config("sgd", backbone=name, multi_head=scenario == "task-il")
    return build_network(name, config.architecture, tiny_benchmark(config, scenario), seed)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_backbone_is_documented(backbone):
    assert documented("backbones", backbone), (
        "the first docstring line is the --help line and ends with a period"
    )


@pytest.mark.parametrize("scenario", ["class-il", "task-il"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_features_and_logits_have_their_shapes_and_every_weight_learns(backbone, scenario):
    net = network(backbone, scenario=scenario)
    x, task_id = torch.rand(5, 1, 6, 6).to(DEVICE[0]), torch.tensor([0, 1, 2, 0, 1]).to(DEVICE[0])
    assert net.features(x).shape == (5, net.feature_dim)
    logits = net(x, task_id)
    assert logits.shape == (5, 6)
    logits.clamp(min=-1e3).square().sum().backward()  # what is not a task's own is −inf
    still = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not still, f"no gradient reaches {still}"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_depend_on_the_seed_alone(backbone):
    first, again, other = network(backbone), network(backbone), network(backbone, seed=1)
    torch.rand(3)  # what was drawn before does not matter
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_sample_is_answered_alike_alone_and_with_others(backbone):
    net = network(backbone).eval()
    x = torch.rand(4, 1, 6, 6).to(DEVICE[0])
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
