"""Captured: a network's training passes, compiled and on a GPU replayed as CUDA graphs (`--compile`).

At batches of 32 a GPU waits while Python launches a few hundred small kernels per step. Here `features` of a
training pass, the whole of an architecture but its head, becomes one launch forward and one backward
(torch.compile, mode reduce-overhead). Head, losses, memory and optimizer stay as they are, so methods do not
know; evaluation, teachers and importances, whose batches have other sizes, run as without it. Every size of
batch is captured once.
"""

import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from engram.backbones.backbone import Backbone
from engram.utils import compat, distributed

BACKEND = {"mode": "reduce-overhead"}  # of torch.compile
# Steps from which on a run is shortened, by device: compiling takes about a minute. None: never. On a CPU
# compiled passes are no quicker than plain ones (`scripts/bench steps --compile --against plain`).
PAYS_FROM = {"cuda": 10_000, "cpu": None}
N_SIZES = 64  # sizes of batch, task heads and frozen parts that are captured before the rest runs plainly


def capture(net: Backbone, n_steps: int) -> str:
    """Compile the training passes of a run of `n_steps` where it pays; returns what was done and why."""
    device = next(net.parameters()).device.type
    least = PAYS_FROM.get(device)
    if least is None:
        return f"--compile: nothing is gained on a {device}; the network runs as it is"
    if distributed.world_size() > 1:
        return "--compile: several processes divide the network's passes; it runs as it is"
    if n_steps < least:
        return f"--compile: pays from about {least:,} steps on and this run has {n_steps:,}; it runs as it is"
    if type(net).forward is not Backbone.forward or not any(_below_head(net)):
        return f"--compile: {type(net).__name__} keeps its passes in its head; it runs as it is"
    compile_passes(net)
    return "--compile: training passes are compiled; the first steps take about a minute"


def compile_passes(net: Backbone) -> None:
    """From now on."""
    compat.configure_compiler(N_SIZES)
    net.features = Captured(net.features)


def begin_step(net: Backbone) -> None:
    """To be called before each training step: from here on the last one's results may be overwritten."""
    if isinstance(net.features, Captured):
        torch.compiler.cudagraph_mark_step_begin()


def _below_head(net: Backbone) -> list[str]:
    return [name for name, _ in net.named_parameters() if not name.startswith("head.")]


class Captured:
    """Stands in for `net.features`. A copy of the network has its own."""

    def __init__(self, plain: Callable[[Tensor], Tensor]):
        self.plain = plain
        self.fast: Callable[[Tensor], Tensor] | None = torch.compile(plain, dynamic=False, **BACKEND)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D)."""
        if self.fast is None or not self._captures(x):
            return self.plain(x)
        try:
            return self.fast(x)
        except Exception as error:
            self.fast = None
            reason = " ".join(str(error).strip().splitlines()[:2])
            tqdm.write(f"--compile: failed ({reason}); the network runs as it is", file=sys.stderr)
            return self.plain(x)

    def _captures(self, x: Tensor) -> bool:
        """Training passes only; not those of `vmap`, which has its own way through every operation."""
        in_training = self.plain.__self__.training and torch.is_grad_enabled()
        return in_training and not compat.in_vmap(x)

    def __deepcopy__(self, memo: dict) -> "Captured":
        return Captured(copy.deepcopy(self.plain, memo))
