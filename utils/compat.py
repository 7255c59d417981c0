"""Compat: every private interface of another package that the project uses, and nothing else.

A private interface may change with any version of its package. Each function says what it needs it for and
which versions it was checked with; `tests/unit/test_compat.py` fails with the name of what has changed. An
architecture test keeps private names of other packages out of all other files.

A package is imported when one of its functions is called: the process that logs to MLflow needs no torch.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.utils.hooks import RemovableHandle

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# --- torch: checked with 2.11 and 2.15 --------------------------------------------------------------


def undecorated(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A method of `torch.optim.Optimizer` without its decorators, which import the compiler at first use.

    Relies on the decorators being made with `functools.wraps`. Without it: a method as it is, only slower.
    """
    return inspect.unwrap(method)


def without_profiler(step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Mark an optimizer's `step` so that the optimizer's constructor does not wrap it for the profiler."""
    step.hooked = True  # type: ignore[attr-defined]
    return step


def configure_compiler(max_sizes: int) -> None:
    """Let torch.compile compile a function for `max_sizes` sizes of input, and each backward pass at once.

    Otherwise a backward pass that cannot be compiled would fail in the middle of a training step.
    """
    import torch

    torch._dynamo.config.recompile_limit = max_sizes
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # it looks at the gradient of every tensor that it is given, prompts made in the step among them
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")


def in_vmap(x: "Tensor") -> bool:
    """Whether a transform of torch.func, such as `vmap`, is passing `x` through the code.

    The compiler cannot trace the question; the passes that it compiles are none of `vmap`.
    """
    import torch

    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def hook_counter() -> "type[RemovableHandle]":
    """The class whose `next_id` grows whenever a hook is registered on a module or tensor of the process."""
    from torch.utils.hooks import RemovableHandle

    return RemovableHandle


def runs_as_written(module: "Module") -> bool:
    """Whether calling a module only calls its class's `forward`: no hook, no `forward` of its own."""
    from torch.nn.modules import module as modules

    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    watched = modules._has_any_global_hook() or any(getattr(module, name) for name in hooks)
    return not watched and "forward" not in vars(module)


def submodules(module: "Module") -> dict[str, "Module"]:
    """The dict in which a module keeps its direct submodules: one that is replaced is replaced in it."""
    return module._modules  # type: ignore[return-value]


def parameters(module: "Module") -> dict[str, "Tensor"]:
    """The dict in which a module keeps its own parameters; reading `module.weight` takes ten times longer."""
    return module._parameters  # type: ignore[return-value]


def backward(loss: "Tensor") -> None:
    """Call `loss.backward()`; for a scalar on a CPU without what comes before it in Python.

    That is checks of arguments that are not given here and a context for a compiler on the threads of GPUs: a
    twentieth of a small network's step.
    """
    import torch

    if type(loss) is not torch.Tensor or not loss.is_cpu or loss.dim():
        loss.backward()
        return
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


# One kernel for a list of tensors instead of one for each; PyTorch has no public name for these operations,
# which its own optimizers are made of. A name that ends in _ changes its first argument in place.


def fused_sgd_(
    tensors: Sequence["Tensor"], gradients: Sequence["Tensor"], lr: float, weight_decay: float
) -> None:
    """tensors[i] -= lr · (gradients[i] + weight_decay · tensors[i]): SGD without momentum, in one kernel."""
    import torch

    if tensors:
        torch._fused_sgd_(
            tensors, gradients, [], weight_decay=weight_decay, momentum=0.0, lr=lr, dampening=0.0,
            nesterov=False, maximize=False, is_first_step=False, grad_scale=None, found_inf=None,
        )  # fmt: skip


def foreach_add_(tensors: Sequence["Tensor"], others: Sequence["Tensor"], alpha: float = 1.0) -> None:
    """tensors[i] += alpha · others[i]."""
    import torch

    torch._foreach_add_(tensors, others, alpha=alpha)


def foreach_addcmul_(
    tensors: Sequence["Tensor"], factors: Sequence["Tensor"], others: Sequence["Tensor"]
) -> None:
    """tensors[i] += factors[i] · others[i], element by element."""
    import torch

    torch._foreach_addcmul_(tensors, factors, others)


def foreach_copy_(tensors: Sequence["Tensor"], sources: Sequence["Tensor"]) -> None:
    """Copy every source into the tensor at its index: tensors[i] = sources[i]."""
    import torch

    torch._foreach_copy_(tensors, sources)


def foreach_lerp_(tensors: Sequence["Tensor"], ends: Sequence["Tensor"], weight: float) -> None:
    """tensors[i] += weight · (ends[i] - tensors[i])."""
    import torch

    torch._foreach_lerp_(tensors, ends, weight)


def foreach_zero_(tensors: Sequence["Tensor"]) -> None:
    """Set every tensor to zero in place."""
    import torch

    torch._foreach_zero_(tensors)


def foreach_sub(tensors: Sequence["Tensor"], others: Sequence["Tensor"]) -> tuple["Tensor", ...]:
    """Return the differences tensors[i] − others[i] as new tensors."""
    import torch

    return torch._foreach_sub(tensors, others)


def foreach_mul(
    tensors: Sequence["Tensor"], factors: "Sequence[Tensor] | Tensor | float"
) -> tuple["Tensor", ...]:
    """tensors[i] · factors[i], element by element, or times one number."""
    import torch

    return torch._foreach_mul(tensors, factors)


# --- timm: checked with 1.0.31 ----------------------------------------------------------------------


def with_positions(transformer: "Module", patches: "Tensor") -> "Tensor":
    """Patches of a timm VisionTransformer, (N, P, D) or (N, H, W, D) → class token, registers and patches.

    (N, 1 + R + P, D), the position embeddings added and resized where the transformer resizes them.
    """
    embedded: Tensor = transformer._pos_embed(patches)  # type: ignore[operator]
    return embedded


# --- MLflow: checked with 3.17 ----------------------------------------------------------------------


def limit_database_retries(attempts: int) -> None:
    """How often MLflow tries to open a database; its own 10 attempts take 100 s, 4 take 1.1 s."""
    import mlflow.store.db.utils
    import mlflow.store.tracking.sqlalchemy_store  # slow: here, outside any lock

    mlflow.store.db.utils.MAX_RETRY_COUNT = attempts


def create_mlflow_tables(uri: str, artifact_uri: str) -> None:
    """Create MLflow's tables in the database at `uri`, for files under `artifact_uri`, and close it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifact_uri).engine.dispose()
