"""What a method predicts for an image depends on nothing else: neither its batch nor what was asked before.

Public codes fail this (prompts chosen by a vote of the batch, statistics written while testing), which raises
their accuracies; see L2P, DualPrompt and MOS in the literature on pre-trained models.
"""

import pytest
import torch
from torch import Tensor

from engram.models.method import Method
from engram.utils.config import registry
from tests.conftest import tiny_benchmark, tiny_method
from tests.contract.test_methods import MODELS, small_method, train

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


@pytest.mark.parametrize("model", MODELS)
def test_a_prediction_depends_on_its_image_alone(model):
    method, config = small_method(model)
    train(method, config)
    samples = tiny_benchmark(config, method.benchmark.scenario).test(3)
    assert_independent(method, method.benchmark.augment.normalise(samples.x_raw), samples.task_id)


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


@pytest.mark.parametrize("leaky", [Centred, Voting, Drifting])
def test_a_leaky_method_is_seen(leaky, monkeypatch):
    monkeypatch.setattr(registry, "plugin_class", lambda module, base: leaky)
    method, config = tiny_method("sgd")
    train(method, config)
    samples = tiny_benchmark(config).test(3)
    with pytest.raises(AssertionError):
        assert_independent(method, method.benchmark.augment.normalise(samples.x_raw), samples.task_id)
