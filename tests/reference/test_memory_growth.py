"""What the importance family carries from task to task, in bytes, on a network of P parameters of 4 bytes."""

from itertools import pairwise

import pytest
from torch import Tensor

from engram.backbones.backbone import build_network
from engram.memorization import proxies
from engram.models.build import build_setup
from engram.models.method import Method
from engram.utils.config import registry
from tests.conftest import tiny_benchmark, tiny_config
from tests.contract.test_methods import train


def n_bytes(state) -> int:
    """Of all tensors in a saved state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(n_bytes, values))


def carried(model: str, **flags) -> tuple[list[int], Method]:
    """Bytes of the method's own state after each of six tasks (6 classes, one each), and the method."""
    config = tiny_config(model, n_tasks=6, multi_head=True, hidden_sizes=(8,), **flags)
    benchmark = tiny_benchmark(config, "task-il")
    net = build_network("mlp", config.architecture, benchmark, 0)
    method_class = registry.plugin_class(registry.load("models", model), Method)
    found = []
    for n in range(1, 7):
        method = method_class(net, config.method, build_setup(config, benchmark, proxies.create))
        train(method, config, tasks=n)
        state = method.state_dict()
        found.append(n_bytes({k: v for k, v in state.items() if k != "net"}))
    return found, method


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("ewc", {"ewc_mode": "online"}), ("ewc", {"ewc_mode": "separate"}), ("mas", {}), ("si", {}),
        ("rwalk", {}), ("imm_mean", {}), ("imm_mode", {}),
    ],
)  # fmt: skip
def test_constant_in_the_number_of_tasks(model, flags):
    """A few numbers per parameter from the first task on, separate EWC's one quadratic included; MAS keeps
    one total, 4 bytes, of each task.
    """
    found, method = carried(model, **flags)
    own = 4 if model == "mas" else 0
    assert {b - a for a, b in pairwise(found[1:])} == {own}
    shared = sum(p.numel() for n, p in method.net.named_parameters() if not n.startswith("head"))
    assert found[-1] <= 5 * 4 * shared + 4 * 6 + 10_000  # five copies at most, and generators' states


def test_ebll_grows_by_one_encoder_a_task():
    """(D + 1) · units numbers: 8 features in, the autoencoder's units out."""
    found, method = carried("ebll", ebll_epochs=1)
    steps = {b - a for a, b in pairwise(found[1:])}
    assert steps == {4 * (8 + 1) * method.n_units}
