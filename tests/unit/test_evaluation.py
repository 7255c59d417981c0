"""The one-pass evaluation against a loop over tasks and samples."""

import pytest
import torch

from engram.utils import batching
from engram.utils.batching import CHUNK, evaluation_chunk
from engram.utils.training.evaluation import accuracies, memory_counts
from tests.conftest import tiny_method
from tests.contract.test_methods import train


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize(("n_tasks", "n_seen"), [(3, 3), (3, 1), (2, 2), (3, 0)])
def test_against_a_loop(scenario, n_tasks, n_seen, monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 7)
    method, _ = tiny_method("sgd", scenario)
    benchmark = method.setup.benchmark
    samples, found = benchmark.test(n_tasks), accuracies(method, n_tasks, n_seen)
    seen = sorted({c for task in benchmark.tasks[:n_seen] for c in task.classes}) or list(range(6))
    method.net.eval()
    for j, task in enumerate(benchmark.tasks[:n_tasks]):
        hits, total = [0, 0], 0
        for i in torch.nonzero(samples.task_id == j).view(-1).tolist():
            x = benchmark.augment.normalise(samples.x_raw[i : i + 1])
            logits = method.net(x, samples.task_id[i : i + 1])[0].detach()
            for view, allowed in enumerate((seen, list(task.classes))):
                hits[view] += max(allowed, key=lambda c: logits[c].item()) == samples.y[i].item()
            total += 1
        assert found[j].tolist() == [h / total for h in hits]


def test_the_networks_mode_and_statistics_stay_as_they_were():
    method, _ = tiny_method("sgd")
    method.net.layers.append(torch.nn.BatchNorm1d(8))
    before = {k: v.clone() for k, v in method.net.state_dict().items()}
    method.net.train()
    accuracies(method, 3, 3)
    assert method.net.training and method.net.layers[-1].training
    for name, value in method.net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("model", ["er", "gem", "fdr"])
def test_what_a_memory_holds_is_counted_by_class_and_task(model):
    method, results = train(*tiny_method(model, "domain-il", buffer_size=12))
    stored, last = method.buffer.stored(), memory_counts(method, task=2)
    for key, field, n in (("per_class", "y", 6), ("per_task", "task_id", 3)):
        assert getattr(last, key) == [stored[field].tolist().count(value) for value in range(n)]
    assert sum(last.per_task) == 12
    assert [row.task for row in results.memory] == [0, 1, 2]
    assert results.memory[-1] == last


def test_without_a_memory_nothing_is_counted():
    assert memory_counts(tiny_method("sgd")[0], task=0) is None
    assert memory_counts(tiny_method("er")[0], task=0) is None  # before its first sample
    assert train(*tiny_method("er", buffer_size=0))[1].memory == []


@pytest.mark.parametrize(
    ("backbone", "side", "expected"),
    [("cnn", 32, 250), ("cnn", 64, 62), ("cnn", 6, 500), ("cnn", 600, 1), ("mlp", 64, 500)],
)
def test_convolutions_on_a_cpu_take_as_many_images_as_stay_below_32_mib(backbone, side, expected):
    net = tiny_method("sgd", backbone=backbone)[0].net
    assert evaluation_chunk(net, (3, side, side), torch.device("cpu")) == expected
    on_cuda = 35 if side == 600 else CHUNK["cuda"]  # as many pixels as 256 images of 224x224 have
    assert evaluation_chunk(net, (3, side, side), torch.device("cuda")) == on_cuda


def test_networks_that_enlarge_images_take_fewer():
    net = tiny_method("sgd", backbone="cnn")[0].net
    net.side = 224
    assert evaluation_chunk(net, (3, 32, 32), torch.device("cpu")) == 256_000 // 224**2
    assert evaluation_chunk(net, (3, 32, 32), torch.device("cuda")) == 256


def test_an_evaluation_takes_these_chunks(monkeypatch):
    monkeypatch.setattr(batching, "CONVOLUTION_PIXELS", 6 * 6 * 7)
    method, _ = tiny_method("sgd", backbone="cnn")
    sizes, predict = [], method.predict
    method.predict = lambda x, task_id: sizes.append(len(x)) or predict(x, task_id)
    accuracies(method, 3, 3)
    assert sizes == [7, 7, 7, 7, 2]
