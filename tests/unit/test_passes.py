"""Several batches' outputs: one pass where it makes no difference, a pass each where it does."""

import pytest
import torch

from engram.models.rehearsal import Examples, RehearsalMethod
from tests.conftest import tiny_method


def batches(sizes: tuple[int, ...]) -> list[Examples]:
    draws = torch.Generator().manual_seed(0)
    x = [torch.randn(n, 1, 6, 6, generator=draws) for n in sizes]
    return [Examples(a, torch.zeros(len(a), dtype=torch.long), torch.arange(len(a)) % 3) for a in x]


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize(
    ("n_passes", "flags"),
    [(1, {}), (1, {"backbone": "cnn", "channels": (4,)}), (3, {"backbone": "resnet18", "width": 0.05})],
)
def test_outputs_are_those_of_single_passes(scenario, n_passes, flags):
    net = tiny_method("sgd", scenario, **flags)[0].net
    method, seen = tiny_method("sgd", scenario, **flags)[0], []
    method.net.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    given = batches((5, 2, 3))
    outputs = RehearsalMethod.separate_passes(method, *given)
    assert len(seen) == n_passes and sum(seen) == 10
    for batch, found in zip(given, outputs, strict=True):
        torch.testing.assert_close(found, net(batch.x, batch.task_id), rtol=1e-5, atol=1e-6)


def test_batch_norm_is_known_from_the_network():
    assert tiny_method("sgd", backbone="resnet18", width=0.05)[0].net.mixes_samples
    assert not tiny_method("sgd")[0].net.mixes_samples
