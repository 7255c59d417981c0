"""Every method with --precision bf16: the network's passes are bfloat16, nothing else is."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engram.models.parts import fisher, importance
from engram.utils import precision
from tests.conftest import methods_with_code
from tests.contract.test_methods import CASES, classes_of, small_method, train

pytestmark = pytest.mark.own_device

ROOT = Path(__file__).parents[2]
# Files whose operations may be bfloat16: networks, and the end of their passes.
NETWORKS = ("backbones/", "utils/precision.py", "models/parts/progressive.py")
# Methods whose steps on a small perceptron are compiled (models/parts/kernel.py), in float32.
COMPILED = ("mer", "online", "gem")
WITHOUT_AUTOGRAD = (*COMPILED, "gdumb")  # or that train at the end


class Watch(TorchDispatchMode):
    """Counts operations on bfloat16 tensors by the innermost line of the project, or as `backward`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(t.dtype == torch.bfloat16 for t in tree_leaves((args, made)) if isinstance(t, Tensor)):
            self.lines[innermost()] += 1
        return made


def innermost() -> str:
    """The innermost line of the project that calls, or `backward` where autograd does so for it."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if (
            path.parts[-2:-1] == ("autograd",)
            and "torch" in path.parts
            and path.name in ("graph.py", "__init__.py")
        ):
            return "backward"
        if path.name == "compat.py" and frame.f_code.co_name == "backward":
            return "backward"
        ours = path.is_relative_to(ROOT) and not {"tests", ".venv"} & set(path.relative_to(ROOT).parts)
        if ours and path.name != "compat.py":  # which does something for its caller
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def floating(value: object) -> Iterator[Tensor]:
    """The floating-point tensors in what a method saves."""
    return (t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point())


@pytest.mark.parametrize(("model", "scenario"), [case for case in CASES if case[0] in methods_with_code()])
def test_only_the_networks_passes_are_bfloat16(model, scenario):
    method, config = small_method(model, scenario, precision="bf16", batch_size=8)
    with Watch() as watch:
        train(method, config, tasks=2)
    outside = [line for line in watch.lines if not line.startswith(("backward", *NETWORKS))]
    assert not outside
    frozen = classes_of(model).frozen_encoder
    assert frozen or model.startswith(WITHOUT_AUTOGRAD) or watch.lines["backward"], "passes are bfloat16"
    assert watch.lines or not frozen
    kinds = {tensor.dtype for tensor in floating(method.state_dict())}
    assert kinds <= {torch.float32, torch.float64}, "weights, memories, importances and old outputs"
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in method.net.parameters())


@pytest.mark.parametrize("model", ["er", "lwf", "ewc"])
def test_at_fp32_nothing_is_bfloat16(model):
    method, config = small_method(model, precision="fp32")
    with Watch() as watch:
        train(method, config, tasks=2)
    assert not watch.lines


def test_evaluation_is_in_the_precision_of_training():
    method, config = small_method("sgd", precision="bf16")
    train(method, config, tasks=1)
    x = method.benchmark.augment.normalise(method.benchmark.test(1).x_raw)
    task_id = torch.zeros(len(x), dtype=torch.long)
    with torch.no_grad():
        predicted = method.predict(x, task_id)
        with precision.in_float32(method.net):
            exact = method.predict(x, task_id)
    assert predicted.dtype == torch.float32
    assert not torch.equal(predicted, exact) and torch.allclose(predicted, exact, atol=0.05)


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
def test_importances_do_not_know_the_precision(backbone):
    def importances(name: str) -> dict[str, Tensor]:
        method, _ = small_method("ewc", precision=name, backbone=backbone)
        shared = importance.shared_parameters(method.net)
        task, draws = method.benchmark.tasks[0], torch.Generator()
        kinds = [
            fisher.of_task(method.net, method.benchmark, shared, task, 5, draws.manual_seed(0), kind, 2)
            for kind in fisher.KINDS
        ]
        return {f"{i} {name}": value for i, kind in enumerate(kinds) for name, value in kind.items()}

    exact, lowered = importances("fp32"), importances("bf16")
    assert exact and all(torch.equal(exact[name], lowered[name]) for name in exact)


def test_a_step_of_several_updates_passes_through_the_weights_of_each():
    """Autocast around the whole step kept the bfloat16 weights of before its first update."""

    def moved(name: str) -> Tensor:
        flags = {"backbone": "cnn", "precision": name, "n_iters": 1, "n_tasks": 1, "lr": 0.3}
        method, config = small_method("mer", **flags)
        assert method.inner.kernel is None
        before = [p.detach().clone() for p in method.net.parameters()]
        train(method, config)
        return torch.cat(
            [(p.detach() - b).flatten() for p, b in zip(method.net.parameters(), before, strict=True)]
        )

    exact, lowered = moved("fp32"), moved("bf16")
    assert (lowered - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("model", COMPILED)
def test_a_run_of_the_compiled_kernel_says_that_it_is_fp32(model):
    method, config = small_method(model, precision="bf16")
    assert method.inner.kernel is not None
    assert (method.setup.precision, method.net.precision) == ("fp32", "fp32")
    line = precision.described(config.run.precision, method.setup.precision)
    assert line.startswith("fp32 (--precision bf16 does not apply")
    method, _ = small_method(model, precision="bf16", backbone="cnn")
    assert method.inner.kernel is None
    assert (method.setup.precision, method.net.precision) == ("bf16", "bf16")


def test_what_is_copied_from_a_network_has_its_precision():
    method, _ = small_method("lwf", precision="bf16")
    assert method.teacher.net.precision == "bf16"
    for model in ("pnn", "independent"):
        method, _ = small_method(model, precision="bf16")
        assert {m.precision for m in method.net.modules() if hasattr(m, "precision")} == {"bf16"}
