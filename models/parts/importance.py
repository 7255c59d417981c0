"""Importance of each parameter: exact per-sample sums of |gradient| or its square, by parameter name.

    Ω_i = (1/N) Σ_n Σ_k w_nk |∂ o_k(x_n) / ∂θ_i|^power

for K quantities o_k of the logits with weights w_k: the Fisher diagonal, MAS, and whatever else is
made of such sums. Always in eval mode, on un-augmented images; buffers (batch-norm statistics) are
never written.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from backbones.heads import TaskHeads
from datasets.benchmark import Samples, Task
from utils.buffer import distinct

# (N, C) logits → quantities (N, K) and their weights (N, K).
Quantities = Callable[[Tensor], tuple[Tensor, Tensor]]

# Floats held at once per chunk of samples: what stays in a CPU's caches, what fills a GPU.
CHUNK_FLOATS = {"cpu": 4 << 20, "cuda": 1 << 28}


def shared_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter of all that tasks share: everything but per-task heads."""
    per_task = isinstance(net.head, TaskHeads)
    return {n: p for n, p in net.named_parameters() if not (per_task and n.startswith("head."))}


def subset(samples: Samples, n: int, generator: torch.Generator) -> Samples:
    """`n` distinct samples, uniformly; all of them, and nothing drawn, for n = 0 or n ≥ their number."""
    if not n or n >= len(samples.y):
        return samples
    rows = distinct(len(samples.y), n, generator).to(samples.y.device)
    return Samples(*(field[rows] for field in samples))


def of_task(
    method, task: Task, n: int, draws: torch.Generator, quantities: Quantities, power: int
) -> dict[str, Tensor]:
    """Mean importance of the shared parameters over `n` training samples of `task` (0: all).

    With per-task heads over separate classes, `quantities` gets the logits of the task's own classes
    only, as its training loss does.
    """
    normalise = method.setup.benchmark.augment.normalise
    samples = subset(method.setup.benchmark.train(task), n, draws)
    columns = slice(None) if method.head_mask is None else torch.tensor(task.classes, device=method.device)
    totals = {name: torch.zeros_like(p) for name, p in shared_parameters(method.net).items()}
    size = chunk_size(method.net, totals)

    def own(logits: Tensor) -> tuple[Tensor, Tensor]:
        return quantities(logits[:, columns])

    with evaluating(method.net):
        for raw, task_id in zip(samples.x_raw.split(size), samples.task_id.split(size), strict=True):
            accumulate(totals, method.net, normalise(raw), task_id, own, power)
    return {name: total / len(samples.y) for name, total in totals.items()}


@contextmanager
def evaluating(net: nn.Module):
    """Eval mode inside, the previous mode afterwards."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def accumulate(
    totals: dict[str, Tensor], net: nn.Module, x: Tensor, task_id: Tensor, quantities: Quantities, power: int
) -> None:
    """Add Σ_n Σ_k w_nk |∂ o_nk / ∂θ|^power over the samples x (N, C, H, W) to `totals`, by name."""
    layers = linear_layers(net, totals)
    add = accumulate_any if layers is None else accumulate_linear
    add(totals, net, x, task_id, quantities, power)


def accumulate_any(
    totals: dict[str, Tensor], net: nn.Module, x: Tensor, task_id: Tensor, quantities: Quantities, power: int
) -> None:
    """`accumulate` for any architecture: all per-sample gradients of the chunk, by `vmap(grad)`."""
    known = dict(net.named_parameters())
    parameters = {name: known[name].detach() for name in totals}

    def quantity(parameters: dict[str, Tensor], x: Tensor, task_id: Tensor, chosen: Tensor) -> Tensor:
        logits = functional_call(net, parameters, (x[None], task_id[None]))
        return (quantities(logits)[0][0] * chosen).sum()

    per_sample = vmap(grad(quantity), in_dims=(None, 0, 0, None))
    with torch.no_grad():
        weights = quantities(net(x, task_id))[1]
    for k, chosen in enumerate(torch.eye(weights.shape[1], device=x.device)):
        for name, g in per_sample(parameters, x, task_id, chosen).items():
            totals[name] += torch.tensordot(weights[:, k], magnitude(g, power), 1)


def accumulate_linear(
    totals: dict[str, Tensor], net: nn.Module, x: Tensor, task_id: Tensor, quantities: Quantities, power: int
) -> None:
    """`accumulate` for fully connected networks, without making the per-sample gradients.

    A layer z = W a + b has the gradient δ aᵀ for a sample, δ = ∂o/∂z: a rank-one matrix, so the sum
    over samples of w |δ aᵀ|^power is the matrix product (w |δ|^power)ᵀ |a|^power.
    """
    layers = linear_layers(net, totals)
    inputs, outputs = {}, {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            assert name not in inputs and output.dim() == 2, f"{name}: the rank-one rule needs one plain use"
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:  # x requires a gradient so that frozen layers have one too
        values, weights = quantities(net(x.detach().requires_grad_(), task_id))
    finally:
        for hook in hooks:
            hook.remove()
    powers = {name: magnitude(a, power) for name, a in inputs.items()}
    for k in range(values.shape[1]):
        deltas = torch.autograd.grad(values[:, k].sum(), list(outputs.values()), retain_graph=True)
        for name, delta in zip(outputs, deltas, strict=True):
            weighted = magnitude(delta, power) * weights[:, k : k + 1].detach()
            totals[f"{name}.weight"] += weighted.T @ powers[name]
            if f"{name}.bias" in totals:
                totals[f"{name}.bias"] += weighted.sum(0)


def magnitude(g: Tensor, power: int) -> Tensor:
    """|g|^power, element by element, for power 1 or 2."""
    return g.abs() if power == 1 else g.square()


def linear_layers(net: nn.Module, names: dict[str, Tensor]) -> dict[str, nn.Linear] | None:
    """Name → layer when all of `names` belong to linear layers (a perceptron), else None."""
    modules = {name.rpartition(".")[0] for name in names}
    layers = {module: net.get_submodule(module) for module in modules}
    return layers if all(isinstance(layer, nn.Linear) for layer in layers.values()) else None


def chunk_size(net: nn.Module, totals: dict[str, Tensor]) -> int:
    """Samples whose gradients (or, without making them, activations) are held at once."""
    layers = linear_layers(net, totals)
    if layers is None:
        per_sample = sum(total.numel() for total in totals.values())
    else:
        per_sample = sum(layer.in_features + layer.out_features for layer in layers.values())
    device = next(iter(totals.values())).device
    return max(1, CHUNK_FLOATS[device.type] // per_sample)
