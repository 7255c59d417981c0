"""Similarity of samples: cosines between the gradients of their losses, exact and vectorised."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from engram.backbones.heads import TaskHeads
from engram.models.parts.importance import evaluating
from engram.models.parts.inner_steps import Logits
from engram.models.parts.layers import known_layers, watching
from engram.models.parts.replay import Replayed

# Floats of per-sample gradients that are held at once.
CHUNK_FLOATS = {"cpu": 16 << 20, "cuda": 1 << 28}


def cosines(method, samples: Replayed, others: Replayed) -> Tensor:
    """(n, m) cosine similarity of ∇θ CE of each of n samples with that of each of m others, in eval mode.

    0 where a gradient is 0.
    """
    parameters = method.trainable()
    layers = known_layers(method.net, parameters) or {}
    called = not isinstance(method.net.head, TaskHeads)  # these put their layers' weights together instead
    with evaluating(method.net):
        if called and layers and all(isinstance(layer, nn.Linear) for layer in layers.values()):
            return cosines_linear(method, layers, samples, others)
        return cosines_any(method, parameters, samples, others)


def cosines_any(method, parameters: dict[str, nn.Parameter], samples: Replayed, others: Replayed) -> Tensor:
    """For any architecture: gradients by `vmap(grad)`, those of the others a chunk at a time."""
    network = Logits(method)
    values = {f"net.{name}": p.detach() for name, p in parameters.items()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, task_id: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, values, (x[None], task_id[None])), y[None])

    def directions(part: Replayed) -> Tensor:
        found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(values, *part)
        return F.normalize(torch.cat([found[name].flatten(1) for name in values], 1), dim=1)

    size = max(1, CHUNK_FLOATS[method.device.type] // sum(p.numel() for p in parameters.values()))
    mine = [directions(Replayed(*part)) for part in zip(*(f.split(size) for f in samples), strict=True)]
    theirs = (directions(Replayed(*part)) for part in zip(*(f.split(size) for f in others), strict=True))
    return torch.cat([torch.cat([m @ t.T for m in mine]) for t in theirs], 1)


def cosines_linear(method, layers: dict[str, nn.Linear], samples: Replayed, others: Replayed) -> Tensor:
    """For fully connected networks, without making the gradients.

    A layer z = W a + b has the gradients δ aᵀ and δ, δ = ∂CE/∂z: the inner product of two samples' is
    (δ · δ')(a · a' + 1), summed over layers.
    """
    n = len(samples.y)
    x, y, task_id = (torch.cat(pair) for pair in zip(samples, others, strict=True))
    inputs, outputs = {}, {}

    def note(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        assert name not in inputs, f"{name}: the rank-one rule needs one plain use"
        inputs[name], outputs[name] = args[0].detach(), output

    with watching(layers, note):
        loss = F.cross_entropy(method.logits(x, task_id), y, reduction="sum")
    deltas = torch.autograd.grad(loss, list(outputs.values()))
    inner, square = torch.zeros(n, len(y) - n, device=x.device), torch.zeros(len(y), device=x.device)
    for name, delta in zip(outputs, deltas, strict=True):
        a, bias = inputs[name], layers[name].bias is not None
        inner += (delta[:n] @ delta[n:].T) * (a[:n] @ a[n:].T + bias)
        square += delta.square().sum(1) * (a.square().sum(1) + bias)
    norm = square.sqrt().clamp_min(1e-12)
    return inner / norm[:n].view(-1, 1) / norm[n:]
