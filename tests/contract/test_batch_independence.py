"""What a method predicts for an image depends on nothing else: neither its batch nor what was asked before.

Public codes fail this (prompts chosen by a vote of the batch, statistics written while testing), which raises
their accuracies; see L2P, DualPrompt and MOS in the literature on pre-trained models. In class-IL it does not
depend on the image's task either, which is not given there.
"""

import pytest
import torch
from torch import Tensor

from engram.models.method import Method
from engram.utils.config import registry
from tests.conftest import tiny_benchmark, tiny_method
from tests.contract.test_methods import MODELS, classes_of, small_method, train

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # of float32 sums in another order


def assert_independent(method: Method, x: Tensor, task_id: Tensor) -> None:
    """Predictions together, one by one, in another order, and once more are the same."""
    method.net.eval()
    with torch.no_grad():
        together = method.predict(x, task_id)
        single = [method.predict(x[i : i + 1], task_id[i : i + 1]) for i in range(len(x))]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        shuffled = method.predict(x[order], task_id[order])
        again = method.predict(x, task_id)
    torch.testing.assert_close(torch.cat(single), together, **TOLERANCE)
    torch.testing.assert_close(shuffled, together[order], **TOLERANCE)
    torch.testing.assert_close(again, together, rtol=0, atol=0)


def assert_blind_to_tasks(method: Method, x: Tensor, task_id: Tensor) -> None:
    """Predictions are the same for images that are said to be of other tasks."""
    method.net.eval()
    n_tasks = len(method.benchmark.tasks)
    with torch.no_grad():
        expected = method.predict(x, task_id)
        for shift in range(1, n_tasks):
            found = method.predict(x, (task_id + shift) % n_tasks)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_a_prediction_depends_on_its_image_alone(model):
    """Of methods defined for class-IL there, where the task is not known."""
    scenarios = classes_of(model).scenarios
    method, config = small_method(model, "class-il" if "class-il" in scenarios else scenarios[0])
    train(method, config)
    samples = tiny_benchmark(config, method.benchmark.scenario).test(3)
    x, task_id = method.benchmark.augment.normalise(samples.x_raw), samples.task_id
    assert_independent(method, x, task_id)
    if method.benchmark.scenario == "class-il":
        assert_blind_to_tasks(method, x, task_id)


class Centred(Method):
    """Leaky: features lose the batch's mean."""

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        logits = self.net(x, task_id)
        return logits - logits.mean(0)


class Voting(Method):
    """Leaky: the class that most of the batch is given is raised for all."""

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        logits = self.net(x, task_id)
        votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        return logits + (votes == votes.max())


class Drifting(Method):
    """Leaky: every prediction changes the network, as a merge of adapters that is written back does."""

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        logits = self.net(x, task_id)
        for parameter in self.net.parameters():
            parameter.mul_(0.9)
        return logits


class Told(Method):
    """Leaky: the classes of an image's own task are raised."""

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        return self.net(x, task_id) + self.benchmark.class_masks[task_id]


def test_a_method_that_is_told_the_task_is_seen(monkeypatch):
    monkeypatch.setattr(registry, "plugin_class", lambda module, base: Told)
    method, config = tiny_method("sgd")
    samples = tiny_benchmark(config).test(3)
    x = method.benchmark.augment.normalise(samples.x_raw)
    assert_independent(method, x, samples.task_id)
    with pytest.raises(AssertionError):
        assert_blind_to_tasks(method, x, samples.task_id)


@pytest.mark.parametrize("leaky", [Centred, Voting, Drifting])
def test_a_leaky_method_is_seen(leaky, monkeypatch):
    monkeypatch.setattr(registry, "plugin_class", lambda module, base: leaky)
    method, config = tiny_method("sgd")
    train(method, config)
    samples = tiny_benchmark(config).test(3)
    with pytest.raises(AssertionError):
        assert_independent(method, method.benchmark.augment.normalise(samples.x_raw), samples.task_id)
