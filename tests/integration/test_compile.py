"""--compile: every method learns what it learns without, says what was done, and never fails for it."""

import os
import shutil

import numpy as np
import pytest
import torch

from engram.backbones import compiled
from engram.backbones.vit import Prompts
from engram.models.method import Method
from engram.utils.config import registry
from engram.utils.training.trainer import Trainer
from tests.conftest import methods_with_code, random_draws, tiny_method

pytestmark = pytest.mark.slow

CNN = {"backbone": "cnn", "channels": (4, 4)}
# Every size of batch is traced anew, which is nearly all of a test's time: two tasks of nine full batches.
FULL_BATCHES = {"n_tasks": 2, "batch_size": 5}
OF_PERCEPTRONS = {"taskinput", "independent", "pnn"}  # which keep their passes in the head
# Their inner training of many sizes is slow to trace here: gdumb and pbcs.
# Those of a transformer call one of two passes, with prompts or with LoRA; each is traced for ten seconds.
OF_TRANSFORMERS = ("dualprompt", "inflora")
# One of each kind of step is always compared: plain, with memory, logits, a teacher, exemplars, a penalty.
ALWAYS = ("sgd", "er", "der", "xder", "lwf", "icarl", "si", "maer")
# Of the others some are drawn, the same at every run; TEST_SEED=7 draws others, COMPILE_ALL=1 takes all of
# them, with those of a transformer but for l2p, which says that its network runs as it is.
N_DRAWN = 16
ALL = bool(os.environ.get("COMPILE_ALL"))


def is_compared(name: str) -> bool:
    """Not those that take no step: nothing is compiled for them."""
    method = registry.plugin_class(registry.load("models", name), Method)
    of_transformers = name in OF_TRANSFORMERS or (ALL and name != "l2p")
    return method.takes_steps and (of_transformers or not method.needs_vit)


def compared_methods() -> list[str]:
    """Those whose step is compiled in this run of the tests."""
    every = [n for n in methods_with_code() if n not in OF_PERCEPTRONS | {"gdumb", "pbcs"} and is_compared(n)]
    always = [n for n in every if n in OF_TRANSFORMERS + ALWAYS]
    others = [n for n in every if n not in always]
    if ALL or len(others) <= N_DRAWN:
        return every
    return [*always, *random_draws("methods to compile").sample(others, N_DRAWN)]


METHODS = compared_methods()


@pytest.fixture(autouse=True)
def anywhere(monkeypatch):
    """As on a GPU: compiling pays from the first step. Traced, but not turned into machine code."""
    monkeypatch.setitem(compiled.PAYS_FROM, "cpu", 0)
    monkeypatch.setattr(compiled, "BACKEND", {"backend": "aot_eager"})
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(model: str, scenario: str, capsys, **flags) -> tuple[Method, np.ndarray, str]:
    """The method at the end of the tiny stream, R, and what was said."""
    quick = registry.plugin_class(registry.load("models", model), Method).quick_flags
    method, config = tiny_method(model, scenario, **{**quick, **flags})
    trainer = Trainer(config, method, folder=None)
    trainer.save = lambda: None
    R = np.stack(list(trainer.run().R.values()))
    return method, R, capsys.readouterr().err


@pytest.mark.parametrize("model", METHODS)
def test_every_method_learns_the_same(model, capsys):
    scenario = "task-il" if "class-il" not in registry.plugin_class(
        registry.load("models", model), Method
    ).scenarios else "class-il"  # fmt: skip
    assert_same_when_compiled(model, scenario, capsys, **FULL_BATCHES)


@pytest.mark.parametrize("model", ["er", "derpp"])
def test_so_does_one_with_odd_last_batches(model, capsys):
    assert_same_when_compiled(model, "class-il", capsys)


def assert_same_when_compiled(model: str, scenario: str, capsys, **flags) -> None:
    if not registry.plugin_class(registry.load("models", model), Method).needs_vit:
        flags |= CNN
    plain, R, _ = trained(model, scenario, capsys, **flags)
    method, again, said = trained(model, scenario, capsys, compile=True, **flags)
    assert "failed" not in said and "--compile: " in said
    assert isinstance(method.net.features, compiled.CompiledFeatures) != method.second_derivatives
    np.testing.assert_array_equal(again, R)
    for name, value in plain.net.state_dict().items():
        torch.testing.assert_close(method.net.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler here")
def test_compiled_to_machine_code(capsys, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", {"mode": "reduce-overhead"})
    plain, R, _ = trained("derpp", "class-il", capsys, **CNN)
    method, again, said = trained("derpp", "class-il", capsys, compile=True, **CNN)
    assert "are compiled" in said and method.net.features.compiled is not None
    np.testing.assert_allclose(again, R, atol=0.1)
    for name, value in plain.net.state_dict().items():
        torch.testing.assert_close(method.net.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["er", "derpp", "ewc", "mas", "lwf", "maer"])
def test_cuda_graphs(model, capsys, monkeypatch, request):
    """A short run on the GPU, with CUDA graphs and without: the same weights up to the order of sums.

    Of the whole step where the method allows it, of the network's passes otherwise.
    """
    if request.config.getoption("--device") != "pretended":  # which has no graphs: traced as on the CPU
        monkeypatch.setattr(compiled, "BACKEND", {"mode": "reduce-overhead"})
    monkeypatch.setitem(compiled.PAYS_FROM, "cuda", 0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding would be the difference
    plain, R, _ = trained(model, "class-il", capsys, device="cuda", **CNN)
    method, again, said = trained(model, "class-il", capsys, device="cuda", compile=True, **CNN)
    if method.eager_step:
        assert "are compiled" in said and "failed" not in said and method.net.features.compiled is not None
    else:
        assert "every training step is one CUDA graph" in said and "cannot be captured" not in said
    np.testing.assert_allclose(again, R, atol=0.1)
    for name, value in plain.net.state_dict().items():
        torch.testing.assert_close(method.net.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled_runs_as_it_is(capsys, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such kernel\nand a long explanation")

    monkeypatch.setattr(compiled, "BACKEND", {"backend": broken})
    plain, R, _ = trained("er", "class-il", capsys, **CNN)
    method, again, said = trained("er", "class-il", capsys, compile=True, **CNN)
    (line,) = [line for line in said.splitlines() if "failed" in line]
    assert "no such kernel" in line and line.endswith("the network runs as it is")
    np.testing.assert_array_equal(again, R)
    for name, value in plain.net.state_dict().items():
        assert torch.equal(method.net.state_dict()[name], value)


@pytest.mark.parametrize("model", sorted(OF_PERCEPTRONS))
def test_a_network_without_shared_passes_is_told(model, capsys):
    _, _, said = trained(model, "task-il", capsys, compile=True)
    assert "keeps its passes in its head; it runs as it is" in said


def test_a_cpu_gains_nothing(capsys, monkeypatch):
    monkeypatch.setitem(compiled.PAYS_FROM, "cpu", None)
    method, _, said = trained("er", "class-il", capsys, compile=True)
    assert "nothing is gained on a cpu" in said
    assert not isinstance(method.net.features, compiled.CompiledFeatures)


def test_a_short_run_is_not_compiled(capsys, monkeypatch):
    monkeypatch.setitem(compiled.PAYS_FROM, "cpu", 1000)
    _, _, said = trained("sgd", "class-il", capsys, compile=True)
    assert "pays from about 1,000 steps on and this run has 24; it runs as it is" in said


def test_transformers_with_adapters_and_prompts_are_one_graph():
    """Features and the gradients of prompts and adapters are those of plain passes; nothing is left out."""
    pytest.importorskip("timm")
    draws = torch.Generator().manual_seed(0)
    method, _ = tiny_method("sgd", backbone="timm:test_vit", input_size=16, tune="adapter", tune_size=4)
    net, x = method.net.train(), torch.randn(2, 1, 16, 16, generator=draws)
    prompts = [torch.randn(2, 3, net.width, generator=draws, requires_grad=True) for _ in range(3)]
    arguments = x, Prompts(prompts[0], {1: (prompts[1], prompts[2])})
    learning = [*prompts, net.blocks[2].adapter.up.weight]
    expected = net.features(*arguments)
    slopes = torch.autograd.grad(expected.square().sum(), learning)
    torch._dynamo.utils.counters.clear()
    compiled.compile_passes(net)
    features = net.features(*arguments)
    torch.testing.assert_close(features, expected)
    for slope, plain in zip(torch.autograd.grad(features.square().sum(), learning), slopes, strict=True):
        torch.testing.assert_close(slope, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
