"""Optimizers: of a task, and the schedule of its learning rate.

PyTorch's own `step` and `zero_grad` import the compiler (torch._dynamo, seconds) when first called, to tell
it to leave them alone, and enter themselves in the profiler at every call, which takes a tenth of a small
network's step. These classes leave both out; the updates are PyTorch's, to the bit.
"""

import inspect
from typing import Any

import torch


def _bare(base: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """`base` with its methods as they are below their decorators; `step` still runs under `no_grad`."""
    plain, load = inspect.unwrap(base.step), inspect.unwrap(base.load_state_dict)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.stride() != p.stride():
                    p.grad = as_laid_out(p.grad, p)
        plain(self)

    def load_state_dict(self, state: dict) -> None:
        load(self, state)
        for p, own in self.state.items():
            own.update({name: as_laid_out(v, p) for name, v in own.items() if _belongs(v, p)})

    step.hooked = True  # otherwise the constructor wraps it for the profiler
    own = {name: inspect.unwrap(getattr(base, name)) for name in ("state_dict", "add_param_group")}
    own |= {"step": step, "zero_grad": _zero_grad, "load_state_dict": load_state_dict}
    return type(base.__name__, (base,), own)


def _zero_grad(self: torch.optim.Optimizer) -> None:
    """Forget all gradients."""
    for group in self.param_groups:
        for p in group["params"]:
            p.grad = None


def _belongs(value: Any, p: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == p.shape


def as_laid_out(value: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """`value` in the memory layout of p. Fused kernels on a CPU take both for one run of numbers and
    would silently pair the wrong ones (torch 2.15).
    """
    return value if value.stride() == p.stride() else torch.empty_like(p).copy_(value)


SGD, Adam, AdamW = map(_bare, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


def build_optimizer(parameters: Any, options: Any) -> torch.optim.Optimizer:
    """The optimizer of one task, of parameters or of (name, parameter) pairs."""
    parameters = list(parameters)
    fused = True  # one kernel per step instead of several per tensor, on CPU and CUDA alike
    if options.optimizer == "sgd":
        return SGD(
            parameters, lr=options.lr, momentum=options.optim_mom, weight_decay=options.optim_wd, fused=fused
        )
    kind = {"adam": Adam, "adamw": AdamW}[options.optimizer]
    return kind(parameters, lr=options.lr, weight_decay=options.optim_wd, fused=fused)


def carry_over(optimizer: torch.optim.Optimizer, before: dict[str, Any]) -> None:
    """Give an optimizer the state that another one, saved as `before`, had for the parameters of both.

    Both were built from (name, parameter) pairs; parameters of another shape, as those of a head that has
    grown, begin anew.
    """
    own, state = optimizer.state_dict(), {}
    old = dict(zip(_names(before), before["param_groups"][0]["params"], strict=True))
    named = zip(_names(own), optimizer.param_groups[0]["params"], strict=True)
    for i, (name, p) in enumerate(named):
        found = before["state"].get(old.get(name))
        if found and all(_belongs(v, p) for v in found.values() if isinstance(v, torch.Tensor) and v.dim()):
            state[i] = found
        elif optimizer.defaults.get("momentum"):  # as before a first step; fused SGD wants all or none
            state[i] = {"momentum_buffer": torch.zeros_like(p)}
    optimizer.load_state_dict(own | {"state": state})


def _names(saved: dict[str, Any]) -> list[str]:
    return saved["param_groups"][0]["param_names"]


def build_scheduler(optimizer: torch.optim.Optimizer, options: Any, n_epochs: int) -> Any:
    """The learning-rate scheduler of one task, stepped once per epoch; None for a constant rate."""
    if options.lr_scheduler == "multistep":
        return torch.optim.lr_scheduler.MultiStepLR(
            optimizer, list(options.lr_milestones), options.sched_multistep_lr_gamma
        )
    if options.lr_scheduler == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs)
    return None
