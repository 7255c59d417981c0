"""Methods on a true CUDA device: no waits, the CPU's numbers, checkpoints that change devices.

Skipped without one. `pytest tests/contract/test_gpu.py --device pretended` checks the tests themselves.
"""

import numpy as np
import pytest
import torch

from engram.models.method import Method
from engram.scripts.bench.device_checks import no_waits
from engram.utils.training.trainer import Trainer
from tests.conftest import methods_with_code
from tests.contract.test_device import MAY_WAIT, learn, tasks_of
from tests.contract.test_methods import small_method, train, weights

pytestmark = pytest.mark.gpu

COMPARED = ("er", "derpp", "maer", "ewc", "gem", "lwf", "si", "icarl")


@pytest.mark.parametrize("model", [m for m in methods_with_code() if m not in MAY_WAIT])
def test_no_step_waits_for_the_device(model, monkeypatch):
    """PyTorch raises at the first operation that does; in the second task, its memory full of the first."""
    method, config = small_method(model, device="cuda")
    *earlier, last = tasks_of(method)[:2]
    for task in earlier:
        learn(method, config, task)
        method.end_task(task)
    own_observe = method.observe

    def observe(batch):
        with no_waits():
            return own_observe(batch)

    monkeypatch.setattr(method, "observe", observe)
    assert learn(method, config, last) > 0


def test_a_wait_is_an_error():
    with no_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(3, device="cuda").sum().item()
    assert torch.ones(3, device="cuda").sum().item() == 3, "outside it is not"


@pytest.mark.parametrize("model", COMPARED)
def test_computes_what_the_cpu_computes(model, autograd):
    """Over a short run: weights up to the order of sums, R up to two of the ten test images of a task."""
    (method, results), (on_cpu, expected) = (train(*small_method(model, device=d)) for d in ("cuda", "cpu"))
    assert_close(method, on_cpu)
    for view in results.R:
        np.testing.assert_allclose(results.R[view], expected.R[view], rtol=0, atol=0.2, equal_nan=True)


@pytest.mark.parametrize("model", COMPARED)
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_changes_devices(model, first, second, autograd, folder):
    """Stopped on one device after the first task and continued on the other: as without the stop."""
    whole, _ = train(*small_method(model, device="cpu"))
    method, config = small_method(model, device=first)
    trainer = Trainer(config, method, folder, quiet=True)
    trainer.tasks = trainer.tasks[:1]
    trainer.run()
    resumed, config = small_method(model, device=second)
    trainer = Trainer(config, resumed, folder, quiet=True)
    trainer.load()
    trainer.save = lambda: None
    trainer.run()
    assert all(p.device.type == second for p in resumed.net.parameters())
    assert_close(resumed, whole)


def assert_close(method: Method, expected: Method) -> None:
    """The same weights, up to the order of sums."""
    wanted = weights(expected)
    for name, value in weights(method).items():
        torch.testing.assert_close(value.cpu(), wanted[name], rtol=1e-3, atol=1e-4)
