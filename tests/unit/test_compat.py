"""Private interfaces of other packages: a test that fails says what a new version of them has changed."""

import re
import time

import mlflow
import pytest
import torch

from engram.utils import compat

TORCH, MLFLOW = f"torch {torch.__version__}", f"MLflow {mlflow.__version__}"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("name", ["step", "state_dict", "load_state_dict", "add_param_group"])
def test_optimizers_methods_lie_below_decorators(kind, name):
    method = compat.undecorated(getattr(kind, name))
    assert method.__code__.co_name == name, (
        f"{TORCH}: {kind.__name__}.{name} is wrapped without functools.wraps"
    )
    assert not hasattr(method, "__wrapped__")


def test_a_marked_step_is_not_wrapped_for_the_profiler():
    def step(self):
        pass

    own = type("Own", (torch.optim.SGD,), {"step": compat.without_profiler(step)})
    own([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert own.step is step, f"{TORCH}: Optimizer no longer looks for `hooked` before it wraps `step`"


def test_the_compiler_has_the_settings(monkeypatch):
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    assert hasattr(dynamo, "recompile_limit"), f"{TORCH}: torch._dynamo.config.recompile_limit is gone"
    name = "force_non_lazy_backward_lowering"
    assert hasattr(functorch, name), f"{TORCH}: torch._functorch.config.{name} is gone"
    monkeypatch.setattr(dynamo, "recompile_limit", 8)
    monkeypatch.setattr(functorch, name, False)
    compat.configure_compiler(64)
    assert dynamo.recompile_limit == 64 and getattr(functorch, name) is True


def test_vmap_is_recognized():
    told = []
    torch.func.vmap(lambda x: told.append(compat.in_vmap(x)) or x)(torch.zeros(2))
    assert told == [True], f"{TORCH}: a tensor inside vmap is not recognized"
    assert not compat.in_vmap(torch.zeros(2))


def test_every_hook_is_counted():
    module, counter = torch.nn.Linear(2, 2), compat.hook_counter()
    hooks = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    for name in hooks:
        before = counter.next_id
        assert compat.runs_as_written(module)
        handle = getattr(module, f"register_{name}")(lambda *given: None)
        assert counter.next_id > before and not compat.runs_as_written(module), f"{TORCH}: register_{name}"
        handle.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *given: None)
    assert not compat.runs_as_written(module), f"{TORCH}: hooks of all modules"
    handle.remove()
    module.forward = lambda x: x
    assert not compat.runs_as_written(module)


def test_the_dicts_of_a_module_are_its_own():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    modules, parameters = compat.submodules(module), compat.parameters(module[0])
    module[0].weight = torch.nn.Parameter(torch.ones(2, 2))
    assert parameters["weight"] is module[0].weight, f"{TORCH}: Module._parameters"
    module[0] = torch.nn.ReLU()
    assert modules["0"] is module[0], f"{TORCH}: Module._modules"


def test_backward_is_the_tensors_own(monkeypatch):
    calls, plain = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *given: calls.append(1) or plain(self, *given))
    for dtype in (torch.float32, torch.float64):
        x = torch.linspace(-1, 2, 7, dtype=dtype).requires_grad_()
        compat.backward((x.exp() * x).sum())
        compat.backward(x.square().sum())
        theirs = x.detach().clone().requires_grad_()
        plain((theirs.exp() * theirs).sum())
        plain(theirs.square().sum())
        assert torch.equal(x.grad, theirs.grad), f"{TORCH}: run_backward"
    assert not calls
    with pytest.raises(RuntimeError, match="does not require grad"):
        compat.backward(torch.ones(()))
    with pytest.raises(RuntimeError, match="scalar outputs"):
        compat.backward(x)
    assert calls == [1]


def test_fused_sgd_is_the_optimizers_own_step():
    ours, theirs = ([torch.arange(5.0).requires_grad_(), torch.ones(2, 3).requires_grad_()] for _ in range(2))
    optimizer = torch.optim.SGD(theirs, lr=0.3, weight_decay=0.01, fused=True)
    for a, b in zip(ours, theirs, strict=True):
        a.grad = b.grad = torch.linspace(-1, 1, a.numel()).view(a.shape)
    with torch.no_grad():
        compat.fused_sgd_(ours, [p.grad for p in ours], 0.3, 0.01)
        compat.fused_sgd_([], [], 0.3, 0.01)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), f"{TORCH}: _fused_sgd_"


def test_operations_on_lists_of_tensors():
    def tensors(*numbers):
        return [torch.tensor([float(n)]) for n in numbers]

    def result(operation, *arguments):
        changed = tensors(1, 2)
        returned = operation(changed, *arguments)
        return [float(t) for t in returned or changed]

    assert result(compat.foreach_add_, tensors(10, 20), 0.5) == [6, 12]
    assert result(compat.foreach_addcmul_, tensors(3, 4), tensors(5, 6)) == [16, 26]
    assert result(compat.foreach_copy_, tensors(7, 8)) == [7, 8]
    assert result(compat.foreach_lerp_, tensors(3, 6), 0.25) == [1.5, 3]
    assert result(compat.foreach_zero_) == [0, 0]
    assert result(compat.foreach_sub, tensors(3, 5)) == [-2, -3]
    assert result(compat.foreach_mul, tensors(3, 5)) == [3, 10]
    assert result(compat.foreach_mul, 4.0) == [4, 8]
    assert result(compat.foreach_mul, torch.tensor(4.0)) == [4, 8]


@pytest.mark.slow
def test_mlflow_gives_a_database_up_after_so_many_attempts(monkeypatch, tmp_path):
    from mlflow.store.db import utils

    waits = []
    monkeypatch.setattr(utils, "MAX_RETRY_COUNT", utils.MAX_RETRY_COUNT)  # to be put back
    monkeypatch.setattr(time, "sleep", waits.append)
    compat.limit_database_retries(3)
    with pytest.raises(Exception, match="unable to open database file"):
        utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{tmp_path}")
    assert len(waits) == 2, f"{MLFLOW}: MAX_RETRY_COUNT is no longer what limits the attempts"


def test_mlflow_makes_its_tables(tmp_path):
    compat.create_mlflow_tables(f"sqlite:///{tmp_path}/mlflow.db", tmp_path.as_uri())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    location = client.get_experiment_by_name("Default").artifact_location
    assert re.match(re.escape(tmp_path.as_uri()), location), (
        f"{MLFLOW}: SqlAlchemyStore takes other arguments"
    )


def test_timms_transformers_add_positions():
    """The class token and its position come first, then each patch with its own."""
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    patches = torch.arange(4 * 192.0).view(1, 4, 192)
    assert hasattr(net, "_pos_embed"), f"timm {timm.__version__}: VisionTransformer._pos_embed is gone"
    expected = torch.cat([net.cls_token, patches], 1) + net.pos_embed
    assert torch.equal(compat.with_positions(net, patches), expected)
