"""Hebbian importance (l-MAS): what goes into a layer times what its ReLU gives; a forward pass, no backward.

Source: Aljundi et al. 2018 (MAS, arXiv 1711.09601), section 4.2: Ω_ij = (1/N) Σ_n y_i(x_n) y_j(x_n) for
the weight from unit j to unit i of the next layer, y after the ReLU. With the layer's input held fixed
that is ½ |∂ ‖y‖²₂ / ∂W_ij|, which is what is computed here where the paper says nothing:

    convolution         the sum over positions p of y_ip y_j,p+k, as the weight is shared by them
    batch norm          one unit with the convolution right before it: y = ReLU(BN(conv)); its own scale
                        and shift get the same derivative
    first layer         inputs may be negative: the absolute value of each sample's product
    bias                the input 1
    a shared head       has no ReLU: y is its output
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engram.backbones.row_parallel import unsharded
from engram.datasets.benchmark import Task
from engram.models.parts import importance, layers
from engram.models.parts.inference import evaluating
from engram.utils import distributed
from engram.utils.errors import UserError
from engram.utils.precision import in_float32

UNKNOWN = (
    "--mas_local knows linear, convolution and batch-norm layers, and {}; choose another --backbone, or MAS "
    "without --mas_local"
)


@torch.no_grad()
def of_images(
    net: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    parameters: dict[str, nn.Parameter],
    images: Tensor,
    task: Task,
    allowed: Tensor | None = None,
) -> dict[str, Tensor]:
    """Mean Hebbian importance of `parameters` over images (N, C, H, W) uint8, seen as images of `task`.

    allowed: (C,) bool, the outputs of a shared head that count; None for all.
    """
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    watched = layers.known_layers(net, totals)
    if watched is None:
        raise UserError(UNKNOWN.format("this backbone has others"))
    task_ids = torch.full((len(images),), task.id, device=images.device)
    with evaluating(net), unsharded(net), in_float32(net):
        size = importance.chunk_size(net, totals, normalise(images[:1]), task_ids[:1])
        for rows in importance.chunks(len(images), size):
            accumulate(totals, net, watched, normalise(images[rows]), task_ids[rows], allowed)
    sums = distributed.all_reduce_sum(totals.values())
    return {name: total / len(images) for name, total in zip(totals, sums, strict=True)}


def accumulate(
    totals: dict[str, Tensor],
    net: nn.Module,
    watched: dict[str, nn.Module],
    x: Tensor,
    task_id: Tensor,
    allowed: Tensor | None,
) -> None:
    """Add Σ_n of every layer's products over the samples x (N, C, H, W) to `totals`, by name."""
    ones = torch.ones(len(x), device=x.device, dtype=x.dtype)
    waiting = {}  # convolutions by the tensor they gave, until it is known whether batch norm takes it

    def add(name: str, layer: nn.Module, a: Tensor, y: Tensor) -> None:
        layers.add(totals, name, layer, a, y, ones, 1)

    def note(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        if not layers.fits(layer, args[0]):
            raise UserError(UNKNOWN.format("here linear layers see the tokens of a transformer"))
        y = output_of_head(output, allowed) if name == "head" else output.relu()
        if isinstance(layer, nn.Conv2d):
            waiting[id(output)] = (name, layer, args[0], y, output)
            return
        add(name, layer, args[0], y)
        if isinstance(layer, nn.BatchNorm2d) and id(args[0]) in waiting:
            before, convolution, a, *_ = waiting.pop(id(args[0]))
            slope = layer.weight * (layer.running_var + layer.eps).rsqrt()
            add(before, convolution, a, y * slope.view(-1, 1, 1))

    with layers.watching(watched, note):
        net(x, task_id)
    for name, layer, a, y, _ in waiting.values():
        add(name, layer, a, y)


def output_of_head(output: Tensor, allowed: Tensor | None) -> Tensor:
    """(N, C) outputs of a shared head, 0 outside the classes allowed (C,)."""
    return output if allowed is None else output.masked_fill(~allowed, 0)
