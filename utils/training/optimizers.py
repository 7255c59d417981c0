"""The optimizer of a task and the schedule of its learning rate.

PyTorch's own `step` and `zero_grad` import the compiler (torch._dynamo, seconds) when first called, to tell
it to leave them alone, and enter themselves in the profiler at every call, which takes a tenth of a small
network's step. These classes leave both out; the updates are PyTorch's, to the bit.
"""

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from engram.utils import compat
from engram.utils.config.config import TrainOptions
from engram.utils.training.ports import State

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


def _without_wrappers(base: type[OptimizerT]) -> type[OptimizerT]:
    """`base` with its methods as they are below their decorators; `step` still runs under `no_grad`."""
    plain_step, plain_load = compat.undecorated(base.step), compat.undecorated(base.load_state_dict)

    @torch.no_grad()
    def step(self: torch.optim.Optimizer) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                gradient = p.grad  # reading it takes longer than comparing strides
                if gradient is not None and gradient.stride() != p.stride():
                    p.grad = as_laid_out(gradient, p)
        if not plain_sgd_(self):
            plain_step(self)

    def load_state_dict(self: torch.optim.Optimizer, state: State) -> None:
        plain_load(self, state)
        for p, values in self.state.items():
            values.update({name: as_laid_out(v, p) for name, v in values.items() if _has_shape_of(p, v)})

    methods = {name: compat.undecorated(getattr(base, name)) for name in ("state_dict", "add_param_group")}
    methods |= {
        "step": compat.without_profiler(step),
        "zero_grad": _zero_grad,
        "load_state_dict": load_state_dict,
    }
    return cast(type[OptimizerT], type(base.__name__, (base,), methods))


def plain_sgd_(optimizer: torch.optim.Optimizer) -> bool:
    """Take a fused step of SGD without momentum at once, where every tensor is float32 on the CPU.

    PyTorch's own sorts parameters by device and by what they keep before it calls the same kernel: three
    quarters of its time for a small network. Returns False, nothing done, where it is to do so.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return False
    groups = optimizer.param_groups
    if any(not g["fused"] or g["momentum"] or isinstance(g["lr"], torch.Tensor) for g in groups):
        return False
    learning: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    for group in groups:
        pairs = [(p, p.grad) for p in group["params"]]
        learning.append([(p, gradient) for p, gradient in pairs if gradient is not None])
    if not all(p.is_cpu and p.dtype == torch.float32 for pairs in learning for p, _ in pairs):
        return False
    for group, pairs in zip(groups, learning, strict=True):
        parameters, gradients = [p for p, _ in pairs], [gradient for _, gradient in pairs]
        compat.fused_sgd_(parameters, gradients, group["lr"], group["weight_decay"])
    return True


def _zero_grad(self: torch.optim.Optimizer) -> None:
    """Set every gradient to None, as PyTorch's own method does."""
    for group in self.param_groups:
        for p in group["params"]:
            p.grad = None


def _has_shape_of(p: torch.Tensor, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == p.shape


def as_laid_out(value: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`value` in the memory layout of p.

    Fused kernels on a CPU take both for one run of numbers and would silently pair the wrong ones
    (torch 2.15).
    """
    return value if value.stride() == p.stride() else torch.empty_like(p).copy_(value)


SGD = _without_wrappers(torch.optim.SGD)
Adam = _without_wrappers(torch.optim.Adam)
AdamW = _without_wrappers(torch.optim.AdamW)


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]], options: TrainOptions
) -> torch.optim.Optimizer:
    """The optimizer of one task, of parameters or of (name, parameter) pairs."""
    values: list[Any] = list(parameters)  # of one of the two kinds
    # fused: one kernel per step instead of several per tensor, on CPU and CUDA alike
    if options.optimizer == "sgd":
        return SGD(
            values,
            lr=options.lr,
            momentum=options.optim_mom,
            weight_decay=options.optim_wd,
            nesterov=options.optim_nesterov,
            fused=True,
        )
    adam = {"adam": Adam, "adamw": AdamW}[options.optimizer]
    return adam(values, lr=options.lr, weight_decay=options.optim_wd, fused=True)


def carry_over(optimizer: torch.optim.Optimizer, before: State) -> None:
    """Give an optimizer the state that another one, saved as `before`, had for the parameters of both.

    Both were built from (name, parameter) pairs; parameters of another shape, as those of a head that has
    grown, begin anew.
    """
    current, state = optimizer.state_dict(), {}
    saved_as = dict(zip(_names(before), before["param_groups"][0]["params"], strict=True))
    named = zip(_names(current), optimizer.param_groups[0]["params"], strict=True)
    for i, (name, p) in enumerate(named):
        saved = before["state"].get(saved_as.get(name))
        if saved and all(
            _has_shape_of(p, v) for v in saved.values() if isinstance(v, torch.Tensor) and v.dim()
        ):
            state[i] = saved
        elif optimizer.defaults.get("momentum"):  # as before a first step; fused SGD wants all or none
            state[i] = {"momentum_buffer": torch.zeros_like(p)}
    optimizer.load_state_dict(current | {"state": state})


def _names(saved: State) -> list[str]:
    """The names of the parameters in an optimizer's state, in its order."""
    return list(saved["param_groups"][0]["param_names"])


def build_scheduler(
    optimizer: torch.optim.Optimizer, options: TrainOptions, n_epochs: int
) -> LRScheduler | None:
    """The learning-rate scheduler of one task, stepped once per epoch; None for a constant rate."""
    if options.lr_scheduler == "multistep":
        return MultiStepLR(optimizer, list(options.lr_milestones), options.sched_multistep_lr_gamma)
    if options.lr_scheduler == "cosine":
        return CosineAnnealingLR(optimizer, n_epochs)
    return None
