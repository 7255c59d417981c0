"""Importance of each parameter: exact per-sample sums of |gradient| or its square, by parameter name.

    Ω_i = (1/N) Σ_n Σ_k w_nk |∂ o_k(x_n) / ∂θ_i|^power

for K quantities o_k of the logits with weights w_k: the Fisher diagonal, MAS, and whatever else is
made of such sums. Always in eval mode, on un-augmented images; buffers (batch-norm statistics) are
never written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from engram.backbones.heads import TaskHeads
from engram.backbones.row_parallel import unsharded
from engram.datasets.benchmark import Benchmark, Samples, Task
from engram.models.parts import layers
from engram.models.parts.inference import allowed_classes, evaluating
from engram.utils import distributed
from engram.utils.buffers.reservoir import distinct
from engram.utils.config.options import OptionSet, option
from engram.utils.precision import in_float32
from engram.utils.transfer import send

# (N, C) logits, and what else is given of each sample → quantities (N, K) and their weights (N, K).
Quantities = Callable[..., tuple[Tensor, Tensor]]

# Floats held at once per chunk of samples: what stays in a CPU's caches, what fills a GPU.
CHUNK_FLOATS = {"cpu": 4 << 20, "cuda": 1 << 28}
# Where no gradients are held, at least so many samples, as fewer cost a large network more each.
FEW = 8


@dataclass(frozen=True)
class ProtectionOptions(OptionSet):
    """Which parameters an importance protects."""

    protect_head: bool = option(
        True, "also protect a head that all tasks share; heads of single tasks never are"
    )


def shared_parameters(net: nn.Module, head: bool = True) -> dict[str, nn.Parameter]:
    """Name → parameter of all that tasks share and that learns: but per-task heads, or but any head."""
    keep_head = head and not isinstance(net.head, TaskHeads)
    learning = {n: p for n, p in net.named_parameters() if p.requires_grad}
    return {n: p for n, p in learning.items() if keep_head or not n.startswith("head.")}


def subset(samples: Samples, n: int, generator: torch.Generator) -> Samples:
    """`n` distinct samples, uniformly; all of them, and nothing drawn, for n = 0 or n ≥ their number."""
    if not n or n >= len(samples.y):
        return samples
    rows = send(distinct(len(samples.y), n, generator), samples.y.device)
    return Samples(*(field[rows] for field in samples))


def of_images(
    net: nn.Module,
    benchmark: Benchmark,
    parameters: dict[str, nn.Parameter],
    images: Tensor,
    task: Task,
    quantities: Quantities,
    power: int,
    *given: Tensor,
) -> dict[str, Tensor]:
    """Mean importance of `parameters` over images (N, C, H, W) uint8, seen as images of `task`.

    given: tensors (N, ...) that `quantities` gets beside the logits, such as labels. The logits are those of
    the classes that compete in the task's training loss.
    """
    normalise = benchmark.augment.normalise
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    task_ids = torch.full((len(images),), task.id, device=images.device)
    quantities = of_allowed_classes(net, benchmark, task, quantities)
    with evaluating(net), unsharded(net), in_float32(net):
        size = chunk_size(net, totals, normalise(images[:1]), task_ids[:1])
        for rows in chunks(len(images), size):
            raw, task_id, *rest = (t[rows] for t in (images, task_ids, *given))
            accumulate(totals, net, normalise(raw), task_id, quantities, power, *rest)
    sums = distributed.all_reduce_sum(totals.values())
    return {name: total / len(images) for name, total in zip(totals, sums, strict=True)}


def chunks(n: int, size: int) -> Iterator[slice]:
    """This process's share of n rows, `size` at a time: images on disk are read as their turn comes."""
    shard = distributed.row_shard(n)
    return (slice(i, min(i + size, shard.stop)) for i in range(shard.start, shard.stop, size))


def of_allowed_classes(
    net: nn.Module, benchmark: Benchmark, task: Task, quantities: Quantities
) -> Quantities:
    """`quantities` of the logits of the classes that compete in the task's training loss."""
    allowed = allowed_classes(net, benchmark, task)
    if allowed is None:
        return quantities
    columns = allowed[task.id].nonzero().view(-1)
    return lambda logits, *given: quantities(logits[:, columns], *given)


def accumulate(
    totals: dict[str, Tensor],
    net: nn.Module,
    x: Tensor,
    task_id: Tensor,
    quantities: Quantities,
    power: int,
    *given: Tensor,
) -> None:
    """Add Σ_n Σ_k w_nk |∂ o_nk / ∂θ|^power over the samples x (N, C, H, W) to `totals`, by name."""
    if not layers.accumulate(totals, net, x, task_id, quantities, power, *given):
        accumulate_any(totals, net, x, task_id, quantities, power, *given)


def accumulate_any(
    totals: dict[str, Tensor],
    net: nn.Module,
    x: Tensor,
    task_id: Tensor,
    quantities: Quantities,
    power: int,
    *given: Tensor,
) -> None:
    """`accumulate` for any architecture: all per-sample gradients of the chunk, by `vmap(grad)`."""
    every = dict(net.named_parameters())
    parameters = {name: every[name].detach() for name in totals}

    def quantity(parameters, chosen: Tensor, x: Tensor, task_id: Tensor, *given: Tensor) -> Tensor:
        logits = functional_call(net, parameters, (x[None], task_id[None]))
        return (quantities(logits, *(g[None] for g in given))[0][0] * chosen).sum()

    per_sample = vmap(grad(quantity), in_dims=(None, None, 0, 0, *(0 for _ in given)))
    with torch.no_grad():
        weights = quantities(net(x, task_id), *given)[1]
    for k, chosen in enumerate(torch.eye(weights.shape[1], device=x.device)):
        for name, g in per_sample(parameters, chosen, x, task_id, *given).items():
            totals[name] += torch.tensordot(weights[:, k], layers.magnitude(g, power), 1)


def chunk_size(net: nn.Module, totals: dict[str, Tensor], x: Tensor, task_id: Tensor) -> int:
    """Samples like x (1, C, H, W) whose activations, or whole gradients, are held at once."""
    limit = CHUNK_FLOATS[x.device.type]
    held = layers.floats_per_sample(net, totals, x, task_id)
    if held is None:
        return max(1, limit // sum(total.numel() for total in totals.values()))
    return max(FEW, limit // held)
