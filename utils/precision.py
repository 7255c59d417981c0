"""Precision: the arithmetic in which a run's network computes on its device.

fp32  float32
tf32  float32 whose products CUDA's matrix units round to 10 bits of mantissa, as PyTorch lets convolutions do
bf16  the layers below the head in bfloat16 by autocast, everything else in float32
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from engram.utils.errors import UserError

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


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Inside, products and convolutions compute in bfloat16 where that is the resolved precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def described(requested: str, precision: str) -> str:
    """`fp32`, and how it comes of what was requested where that has another name."""
    if requested == precision:
        return precision
    if requested == "auto":
        return f"{precision} (chosen by --precision auto)"
    return f"{precision} (--precision {requested} needs a CUDA device with such units)"
