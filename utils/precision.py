"""Precision: the arithmetic in which a run's network computes on its device.

fp32  float32
tf32  float32 whose products CUDA's matrix units round to 10 bits of mantissa, as PyTorch lets convolutions do
bf16  the layers below the head in bfloat16 by autocast, everything else in float32

Autocast is entered by a network's passes alone and not around a step: heads, losses, projections, memories
and whatever else a method computes are float32 without saying so. It also keeps bfloat16 copies of the
weights until it is left; around a step of several updates these would be the weights before the first.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from engram.utils.errors import UserError

Rest = ParamSpec("Rest")
TF32_CAPABILITY = (8, 0)  # of a CUDA device: Ampere


def resolve(requested: str, device: torch.device) -> str:
    """The precision that `--precision` means on a device: fp32, tf32 or bf16.

    `auto` is tf32 where the device has it and fp32 elsewhere, so that a command's numbers do not depend on
    which CPU runs it. tf32 is a permission: a device without such units computes in fp32. Raises `UserError`
    for bf16 on a CUDA device that has no such arithmetic.
    """
    if requested in ("auto", "tf32"):
        return "tf32" if has_tf32(device) else "fp32"
    if requested == "bf16" and device.type == "cuda" and not _has_bf16(device):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision bf16: {name} has no bfloat16 arithmetic; use --precision fp32")
    return requested


def has_tf32(device: torch.device) -> bool:
    """Whether float32 products can use TF32 units on the device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY


def _has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def configure(precision: str) -> None:
    """Let float32 products use TF32 units if a resolved precision is tf32, and keep them whole otherwise."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


class HasPrecision(Protocol):
    """A module whose passes compute in a resolved precision."""

    precision: str


ModuleT = TypeVar("ModuleT", bound=HasPrecision)
Pass = Callable[Concatenate[ModuleT, Tensor, Rest], Tensor]


def in_own_precision(compute: "Pass[ModuleT, Rest]") -> "Pass[ModuleT, Rest]":
    """Decorate a method of a module, (N, ...) → (N, ...): bfloat16 inside where its `precision` is bf16.

    The result is float32 then.
    """

    @functools.wraps(compute)
    def run(module: ModuleT, x: Tensor, *args: Rest.args, **kwargs: Rest.kwargs) -> Tensor:
        if module.precision != "bf16":
            return compute(module, x, *args, **kwargs)
        with torch.autocast(x.device.type, torch.bfloat16):
            return compute(module, x, *args, **kwargs).float()

    return run


def use(precision: str, network: nn.Module) -> None:
    """Let all passes of a network, and of what is copied from it, compute in a resolved precision."""
    for module in network.modules():
        if hasattr(module, "precision"):
            module.precision = precision


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Inside, a network that computes in bf16 computes in float32: importances are made there."""
    lowered = [module for module in network.modules() if getattr(module, "precision", None) == "bf16"]
    for module in lowered:
        module.precision = "fp32"
    try:
        yield
    finally:
        for module in lowered:
            module.precision = "bf16"


def time_convolutions(network: nn.Module, device: torch.device) -> None:
    """Let cuDNN time its algorithms at the first pass of every shape and keep the fastest.

    That pays where shapes recur: on CUDA, for convolutions, as all images of a run have one size and batches
    few sizes. The choice, and so the last bits of a run on CUDA, may differ from process to process; cuDNN's
    backward passes sum in an order of their own anyhow.
    """
    convolutional = any(isinstance(module, nn.Conv2d) for module in network.modules())
    torch.backends.cudnn.benchmark = device.type == "cuda" and convolutional


def described(requested: str, precision: str) -> str:
    """`fp32`, and how it comes of what was requested where that has another name."""
    if requested == precision:
        return precision
    if requested == "auto":
        return f"{precision} (chosen by --precision auto)"
    if requested == "bf16":
        return f"{precision} (--precision bf16 does not apply: a compiled kernel takes the steps, in float32)"
    return f"{precision} (--precision {requested} needs a CUDA device with such units)"
