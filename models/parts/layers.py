"""Layers: per-sample gradients of linear, convolution and batch-norm layers, from their inputs and ∂o/∂z.

N: samples, O: outputs of a layer, K: inputs of one output, P: positions of a convolution. A layer
z = W a + b at each position has, for one sample, the gradient Σ_p δ_p a_pᵀ with δ = ∂o/∂z. One batched
backward pass gives every δ; the products are made layer by layer, in blocks of outputs, so that the
gradients of a whole network are never held.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

# Floats of per-sample gradients held at once: what stays in a CPU's caches, what fills a GPU.
BLOCK_FLOATS = {"cpu": 1 << 20, "cuda": 1 << 26}


def accumulate(
    totals: dict[str, Tensor],
    net: nn.Module,
    x: Tensor,
    task_id: Tensor,
    quantities: Callable,
    power: int,
    *given: Tensor,
) -> bool:
    """Add Σ_n Σ_k w_nk |∂ o_nk / ∂θ|^power over the samples x (N, C, H, W) to `totals`, by name.

    False, and nothing is added, where a named parameter belongs to another kind of layer or a layer is
    not used exactly once.
    """
    layers = known_layers(net, totals)
    if layers is None:
        return False
    inputs, edges, times = {}, {}, dict.fromkeys(layers, 0)

    def note(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        inputs[name], times[name] = args[0].detach(), times[name] + 1
        edges[name] = get_gradient_edge(output)  # of the output itself, should a ReLU overwrite it

    with watching(layers, note):  # x requires a gradient so that frozen layers have one too
        values, weights = quantities(net(x.detach().requires_grad_(), task_id), *given)
    if set(times.values()) != {1} or not all(fits(layers[n], a) for n, a in inputs.items()):
        return False
    weights = weights.detach()
    for k in range(values.shape[1]):
        more = k + 1 < values.shape[1]
        deltas = torch.autograd.grad(values[:, k].sum(), list(edges.values()), retain_graph=more)
        for name, delta in zip(edges, deltas, strict=True):
            add(totals, name, layers[name], inputs[name], delta, weights[:, k], power)
    return True


def known_layers(net: nn.Module, names: dict[str, Tensor]) -> dict[str, nn.Module] | None:
    """Name → layer of all that own one of the parameters; None when there is one of another kind."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    layers = {owner: net.get_submodule(owner) for owner in owners}
    return layers if all(known(layer) for layer in layers.values()) else None


def known(layer: nn.Module) -> bool:
    """Whether there is a rule for such a layer."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats)


def fits(layer: nn.Module, a: Tensor) -> bool:
    """Whether the rule holds for this input: one vector per sample, or (N, C, H, W)."""
    return a.dim() == (2 if isinstance(layer, nn.Linear) else 4)


@contextmanager
def watching(layers: dict[str, nn.Module], note: Callable) -> Iterator[None]:
    """Inside, every use of a layer calls note(name, layer, args, output)."""

    def hook_for(name: str) -> Callable:
        return lambda layer, args, output: note(name, layer, args, output)

    hooks = [layer.register_forward_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def add(
    totals: dict[str, Tensor],
    name: str,
    layer: nn.Module,
    a: Tensor,
    delta: Tensor,
    weights: Tensor,
    power: int,
) -> None:
    """Add Σ_n w_n |gradient of sample n|^power for the layer's parameters that `totals` has.

    a: the layer's input. delta (like its output): ∂o_n/∂z, one quantity per sample. weights: (N,).
    """
    weight, bias = totals.get(f"{name}.weight"), totals.get(f"{name}.bias")
    if isinstance(layer, nn.Linear):
        weighted = magnitude(delta, power) * weights.view(-1, 1)
        if weight is not None:  # rank one per sample: |δ aᵀ|^power = |δ|^power (|a|^power)ᵀ
            weight += weighted.T @ magnitude(a, power)
        if bias is not None:
            bias += weighted.sum(0)
        return
    if weight is not None and isinstance(layer, nn.Conv2d):
        add_convolution(weight, layer, a, delta, weights, power)
    elif weight is not None:
        weight += weights @ magnitude((delta * normalised(layer, a)).sum((2, 3)), power)
    if bias is not None:
        bias += weights @ magnitude(delta.sum((2, 3)), power)


def add_convolution(
    total: Tensor, layer: nn.Conv2d, a: Tensor, delta: Tensor, weights: Tensor, power: int
) -> None:
    """`add` for a convolution's weight: (N, o, K) gradients for a few outputs o at a time."""
    patches, delta = unfolded(layer, a, delta.shape[2:]), delta.flatten(2)  # (N, P, K), (N, O, P)
    n, _, size = patches.shape
    step = max(1, BLOCK_FLOATS[a.device.type] // (n * size))
    buffer = torch.empty(n, min(step, len(total)), size, dtype=a.dtype, device=a.device)
    for start in range(0, len(total), step):
        block = total[start : start + step]
        gradients = torch.bmm(delta[:, start : start + step], patches, out=buffer[:, : len(block)])
        magnitude_(gradients, power)
        sums = torch.tensordot(weights, gradients, 1)
        block += sums.view(len(block), *layer.kernel_size, -1).permute(0, 3, 1, 2)


def unfolded(layer: nn.Conv2d, a: Tensor, out: torch.Size) -> Tensor:
    """(N, P, K) what each output position sees, K in the order (kernel height, width, channels).

    So ordered, each row is a few runs of memory where channels come last, many times faster to copy on a
    CPU than what `F.unfold` makes.
    """
    (down, right), (tall, wide) = layer.padding, layer.kernel_size
    padded = F.pad(a, (right, right, down, down)).permute(0, 2, 3, 1).contiguous()
    n, row, column, channel = padded.stride()
    strides = (n, layer.stride[0] * row, layer.stride[1] * column)
    strides += (layer.dilation[0] * row, layer.dilation[1] * column, channel)
    view = padded.as_strided((len(a), *out, tall, wide, padded.shape[3]), strides)
    return view.reshape(len(a), out.numel(), -1)


def normalised(layer: nn.BatchNorm2d, a: Tensor) -> Tensor:
    """The layer's input as eval mode normalises it, before scale and shift."""
    scale = (layer.running_var + layer.eps).rsqrt()
    return (a - layer.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)


def magnitude(g: Tensor, power: int) -> Tensor:
    """|g|^power, element by element, for power 1 or 2."""
    return g.abs() if power == 1 else g.square()


def magnitude_(g: Tensor, power: int) -> Tensor:
    """|g|^power, written into g itself."""
    return g.abs_() if power == 1 else g.square_()


@torch.no_grad()
def floats_per_sample(net: nn.Module, totals: dict[str, Tensor], x: Tensor, task_id: Tensor) -> int | None:
    """Floats that `accumulate` holds of a sample, counted on x (1, C, H, W); None where there is no rule."""
    layers, counts = known_layers(net, totals), []
    if layers is None:
        return None

    def count(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        patches = layer.weight[0].numel() * output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 0
        counts.append((args[0].numel() + output.numel(), patches))

    with watching(layers, count):
        net(x, task_id)
    return sum(held for held, _ in counts) + max(patches for _, patches in counts)
