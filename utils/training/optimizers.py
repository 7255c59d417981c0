"""The optimizer of a task and the schedule of its learning rate.

PyTorch's own `step` and `zero_grad` import the compiler (torch._dynamo, seconds) when first called, to tell
it to leave them alone, and enter themselves in the profiler at every call, which takes a tenth of a small
network's step. These classes leave both out; the updates are PyTorch's, to the bit.
"""

import math
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from engram.utils import compat
from engram.utils.config.config import TrainOptions
from engram.utils.errors import UserError
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
    if options.encoder_lr_scale != 1:
        values = grouped(values, options.lr, options.encoder_lr_scale)
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


def grouped(named: list[tuple[str, nn.Parameter]], lr: float, scale: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: the head's parameters at rate `lr`, all others at `scale` times that."""
    if not all(isinstance(pair, tuple) for pair in named):
        raise ValueError("with --encoder_lr_scale an optimizer takes (name, parameter) pairs")
    head = [pair for pair in named if pair[0].startswith("head.")]
    encoder = [pair for pair in named if not pair[0].startswith("head.")]
    groups = ({"params": head, "lr": lr}, {"params": encoder, "lr": scale * lr})
    return [group for group in groups if group["params"]]


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate that all parameters have, for steps that a method takes itself; `UserError` if they differ."""
    if len(optimizer.param_groups) > 1:
        raise UserError("this method takes steps of one learning rate: leave --encoder_lr_scale out")
    return optimizer.param_groups[0]["lr"]  # type: ignore[no-any-return]


def carry_over(optimizer: torch.optim.Optimizer, before: State) -> None:
    """Give an optimizer the state that another one, saved as `before`, had for the parameters of both.

    Both were built from (name, parameter) pairs; parameters of another shape, as those of a head that has
    grown, begin anew.
    """
    current, state = optimizer.state_dict(), {}
    saved_as = dict(zip(_of_groups(before, "param_names"), _of_groups(before, "params"), strict=True))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    named = zip(_of_groups(current, "param_names"), parameters, strict=True)
    for i, (name, p) in enumerate(named):
        saved = before["state"].get(saved_as.get(name))
        if saved and all(
            _has_shape_of(p, v) for v in saved.values() if isinstance(v, torch.Tensor) and v.dim()
        ):
            state[i] = saved
        elif optimizer.defaults.get("momentum"):  # as before a first step; fused SGD wants all or none
            state[i] = {"momentum_buffer": torch.zeros_like(p)}
    optimizer.load_state_dict(current | {"state": state})


def _of_groups(saved: State, key: str) -> list[Any]:
    """What all groups in an optimizer's state list under a key, in its order."""
    return [item for group in saved["param_groups"] for item in group[key]]


def build_scheduler(
    optimizer: torch.optim.Optimizer, options: TrainOptions, n_epochs: int
) -> LRScheduler | None:
    """The learning-rate scheduler of one task, stepped once per epoch; None for a constant rate."""
    if options.lr_scheduler == "multistep":
        return MultiStepLR(optimizer, list(options.lr_milestones), options.sched_multistep_lr_gamma)
    if options.lr_scheduler == "cosine":
        return CosineAnnealingLR(optimizer, n_epochs)
    if options.lr_scheduler == "cosine_quarter":
        return LambdaLR(optimizer, lambda epoch: quarter_wave(epoch, n_epochs))
    return None


def quarter_wave(epoch: int, n_epochs: int) -> float:
    """The rate of an epoch (from 0) as a share of the first one's: cos(99 π e / (200 (E − 1))).

    The last of E epochs has 0.016. Source: the codes of Smith et al. 2023 (CODA-Prompt, arXiv 2211.13218) and
    Liang & Li 2024 (InfLoRA, arXiv 2404.00228).
    """
    last = max(1, n_epochs - 1)
    return math.cos(99 * math.pi * min(epoch, last) / (200 * last))
