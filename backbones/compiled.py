"""Compiled: a network's training passes, compiled and on a GPU replayed as CUDA graphs (`--compile`).

At batches of 32 a GPU waits while Python launches a few hundred small kernels per step. Here `features` of a
training pass, the whole of an architecture but its head, becomes one launch forward and one backward
(torch.compile, mode reduce-overhead). Head, losses, memory and optimizer stay as they are, so methods do not
know; evaluation, teachers and importances, whose batches have other sizes, run as without it. Every size of
batch is compiled and captured once.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engram.backbones.backbone import Backbone
from engram.backbones.mlp import MLP
from engram.utils import compat, distributed

BACKEND: dict[str, Any] = {"mode": "reduce-overhead"}  # arguments of torch.compile; on a GPU: CUDA graphs
# Steps from which on a run is shortened, by device: compiling takes about a minute. None: never. On a CPU
# compiled passes are no quicker than plain ones (`scripts/bench steps --compile --against plain`).
PAYS_FROM = {"cuda": 10_000, "cpu": None}
N_SIZES = 64  # sizes of batch, task heads and frozen parts that are captured before the rest runs plainly


def compile_if_worthwhile(net: Backbone, n_steps: int) -> str:
    """Compile the training passes if a run of `n_steps` gets shorter by it; returns what was done and why."""
    device = next(net.parameters()).device.type
    least = PAYS_FROM.get(device)
    if least is None:
        return f"--compile: nothing is gained on a {device}; the network runs as it is"
    if distributed.world_size() > 1:
        return "--compile: several processes divide the network's passes; it runs as it is"
    if n_steps < least:
        return f"--compile: pays from about {least:,} steps on and this run has {n_steps:,}; it runs as it is"
    if type(net).forward not in (Backbone.forward, MLP.forward) or not any(_below_head(net)):
        return f"--compile: {type(net).__name__} keeps its passes in its head; it runs as it is"
    compile_passes(net)
    return "--compile: training passes are compiled; the first steps take about a minute"


def compile_passes(net: Backbone) -> None:
    """Replace `net.features` by its compiled form, which the next training step compiles."""
    compat.configure_compiler(N_SIZES)
    net.features = CompiledFeatures(net.features)  # type: ignore[method-assign]


def begin_step(net: Backbone) -> None:
    """Tell CUDA graphs that a training step begins: they may overwrite the results of the last one."""
    if isinstance(net.features, CompiledFeatures):
        torch.compiler.cudagraph_mark_step_begin()


def _below_head(net: Backbone) -> list[str]:
    """Names of the parameters that `features` uses."""
    return [name for name, _ in net.named_parameters() if not name.startswith("head.")]


class CompiledFeatures:
    """Replaces `net.features` by its compiled form; a copy of the network compiles its own."""

    def __init__(self, features: Callable[..., Tensor]):
        self.plain = features
        self.compiled: Callable[..., Tensor] | None = torch.compile(features, dynamic=False, **BACKEND)

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        """(N, C, H, W), and what else the network takes, such as prompts → (N, D)."""
        if self.compiled is None or not self._is_training_pass(x):
            return self.plain(x, *others)
        try:
            return self.compiled(x, *others)
        except Exception as error:
            self.compiled = None
            reason = " ".join(str(error).strip().splitlines()[:2])
            tqdm.write(f"--compile: failed ({reason}); the network runs as it is", file=sys.stderr)
            return self.plain(x, *others)

    def _is_training_pass(self, x: Tensor) -> bool:
        """Whether gradients are needed. Passes of `vmap`, which replaces every operation, do not count."""
        in_training = self.plain.__self__.training and torch.is_grad_enabled()  # type: ignore[attr-defined]
        return in_training and not compat.in_vmap(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledFeatures":
        return CompiledFeatures(copy.deepcopy(self.plain, memo))
