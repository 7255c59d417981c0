"""Whether bfloat16 would shorten a run on this device: measured, as a processor's name does not tell.

Processors with matrix units for bfloat16 (AMX) or instructions for it (AVX-512 BF16) gain a factor; those
without lose one. Convolutional networks alone gain: others spend their time elsewhere.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engram.utils.device import OneThread

WORTH_SAYING = 1.25  # times as fast
LONG_RUN = 10_000  # steps, from which a run on CUDA is worth other flags, as --compile's are
ROUNDS = 3
SHAPES = {"cpu": (4, 64, 16, 16), "cuda": (256, 128, 32, 32)}  # of images (N, C, H, W): milliseconds each


def advice(precision: str, network: nn.Module, device: torch.device, long_run: bool) -> str | None:
    """One line for the start of a run whose network computes in a resolved precision; None where none helps.

    long_run: on CUDA only then is it said, as short runs wait for Python rather than for arithmetic.
    """
    if not any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return None
    if precision == "bf16":
        factor = speedup(device) if device.type == "cpu" else math.inf
        return None if factor >= 1 else f"bf16 is slower than fp32 on this CPU: {factor:.1f} of its speed"
    if device.type == "cuda" and not (long_run and torch.cuda.is_bf16_supported(including_emulation=False)):
        return None
    factor = speedup(device)
    if factor < WORTH_SAYING:
        return None
    return (
        f"--precision bf16 would be faster: a convolution is {factor:.1f} times as fast here (measured now)"
    )


def speedup(device: torch.device) -> float:
    """How many times as fast a convolution, forward and backward, is in bfloat16 as in float32 as configured.

    The least times of a few alternating rounds: processor time of one thread on a CPU, so that other programs
    do not decide; about 20 ms in all. 1 where the clock is too coarse to tell: Linux counts processor time in
    ticks of some ms where it is limited (`ulimit -t`) or profiled. Draws no random numbers.
    """
    passes = {dtype: _convolution(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    least = dict.fromkeys(passes, math.inf)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with OneThread():
        for n in range(ROUNDS + 1):
            for dtype, run in passes.items():
                started = clock()
                run()
                if n:  # the first prepares
                    least[dtype] = min(least[dtype], clock() - started)
    return least[torch.float32] / least[torch.bfloat16] if all(least.values()) else 1.0


def _convolution(device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A function that passes images through a 3x3 convolution, and gradients back, and waits for the end."""
    shape = SHAPES[device.type]
    weights = (shape[1], shape[1], 3, 3)

    def leaf(size: tuple[int, ...]) -> Tensor:
        made = torch.full(size, 0.5, device=device, dtype=dtype)
        return made.to(memory_format=torch.channels_last).requires_grad_()

    x, weight = leaf(shape), leaf(weights)

    def run() -> None:
        x.grad = weight.grad = None
        F.conv2d(x, weight, padding=1).sum().backward()  # torch.autograd.grad would import the compiler: 2 s
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
