"""Steps: the inner work of the methods of the MER and GEM papers, one function per idea.

P: number of parameters, as one flat vector in the order given. T: tasks. n: samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from engram.models.parts.kernel import MLPKernel
from engram.models.parts.replay import Replayed


def kernel_of(method) -> MLPKernel | None:
    """The compiled kernel for the method's network; None where it, or plain SGD, does not fit.

    Chosen once per method, best when it is built. The kernel equals the autograd code below up to
    float32 rounding (tests/reference/test_kernel.py) and is a hundred times faster on single samples.
    """
    if not hasattr(method, "kernel"):
        train = method.setup.train
        plain = train.optimizer == "sgd" and not train.optim_mom and not train.optim_wd
        fits = plain and MLPKernel.fits(method.net, method.device)
        method.kernel = MLPKernel(method.net, pixel_values(method)) if fits else None
        if fits:  # compile, or load what was compiled, now: it takes seconds that are not training
            x, y = torch.empty(0, method.kernel.n_inputs), torch.empty(0, dtype=torch.long)
            method.kernel.reptile(x, y, 0.0)
            method.kernel.step(x, y, torch.empty(0), 0.0)
            method.kernel.gradients(x, y, torch.empty(0), [])
    return method.kernel


def pixel_values(method) -> Tensor | None:
    """(256,) what each pixel value becomes on its way into the network; None where that is not all."""
    augment = method.setup.benchmark.augment
    if augment.crop_padding or augment.flip or len(augment.mean) > 1:
        return None
    return augment.normalise(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)).flatten()


def images(method, raw: Tensor) -> Tensor:
    """Stored images as `gradients_by_part` takes them: raw if the kernel normalises them, else augmented."""
    kernel = kernel_of(method)
    return raw if kernel is not None and kernel.takes_raw else method.augment(raw)


def compiled_step(method, samples: Replayed, weights: Tensor | None = None) -> Tensor | None:
    """One SGD step on `weighted_loss`, which is returned, by the kernel; None where it does not fit."""
    kernel = kernel_of(method)
    if kernel is None:
        return None
    if weights is None:
        weights = torch.full((len(samples.y),), 1 / len(samples.y))
    return kernel.step(samples.x, samples.y, weights, method.optimizer.param_groups[0]["lr"])


def sequential_sgd(method, samples: Replayed, lr: float, scale: Tensor | None = None) -> Tensor:
    """θ ← θ − lr · scale_i ∇CE(f(x_i), y_i) for one sample after the other.

    scale: (n,), ones by default. Returns (n,) losses, unscaled, each before its own step.
    """
    kernel = kernel_of(method)
    if kernel is not None:
        return kernel.sequence(samples.x, samples.y, lr, scale)
    parameters, losses = list(method.trainable().values()), []
    for i, (x, y, task_id) in enumerate(zip(*(field.split(1) for field in samples), strict=True)):
        loss = F.cross_entropy(method.logits(x, task_id), y)
        scaled = loss if scale is None else scale[i] * loss
        gradients = torch.autograd.grad(scaled, parameters, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-lr)
        losses.append(loss.detach())
    return torch.stack(losses)


def reptile_sgd(
    method, batches: list[Replayed], lr: float, within: float, across: float, scales: list[Tensor | None]
) -> Tensor:
    """MER's inner loops: `sequential_sgd` through each batch, then Reptile, and Reptile over all of them.

    θ ← θ^W + within (θ − θ^W) after each batch, θ^W being its start, and the same with `across` and the
    start of all. batches: of equal size n. Returns the (n,) losses of the first.
    """
    kernel = kernel_of(method)
    if kernel is not None:
        x, y = (torch.cat(field) for field in list(zip(*batches, strict=True))[:2])
        scale = None if scales[0] is None else torch.cat(scales)
        losses = kernel.reptile(x, y, lr, len(batches), within, across, scale)
        return losses[: len(batches[0].y)]
    parameters, first = list(method.trainable().values()), None
    before = snapshot(parameters)  # θ^A_0
    for samples, scale in zip(batches, scales, strict=True):
        start = snapshot(parameters)  # θ^W_0
        losses = sequential_sgd(method, samples, lr, scale)
        first = losses if first is None else first
        reptile(parameters, start, within)
    reptile(parameters, before, across)
    return first


def weighted_loss(method, samples: Replayed, weights: Tensor | None = None) -> Tensor:
    """Scalar Σ_i w_i CE(f(x_i), y_i); the mean without weights (n,)."""
    logits = method.logits(samples.x, samples.task_id)
    if weights is None:
        return F.cross_entropy(logits, samples.y)
    return (weights * F.cross_entropy(logits, samples.y, reduction="none")).sum()


def gradient(method, parameters: list[Tensor], samples: Replayed, weights: Tensor | None = None) -> Tensor:
    """(P,) gradient of `weighted_loss`; `.grad` stays as it is."""
    loss = weighted_loss(method, samples, weights)
    return flat(torch.autograd.grad(loss, parameters, materialize_grads=True))


def gradients_by_part(method, parameters: dict[str, Tensor], samples: Replayed, counts: list[int]) -> Tensor:
    """(T, P) gradients of the mean loss on each of the T parts, of `counts` samples, of the samples.

    Parts of equal size are one batched pass, unless the network keeps statistics (batch norm); the kernel
    takes any sizes.
    """
    kernel = kernel_of(method)
    if kernel is not None:
        n = torch.tensor(counts)
        return kernel.gradients(samples.x, samples.y, (1 / n).repeat_interleave(n), counts)
    if len(set(counts)) > 1 or any(True for _ in method.net.buffers()):
        parts = zip(*(field.split(counts) for field in samples), strict=True)
        return torch.stack([gradient(method, list(parameters.values()), Replayed(*part)) for part in parts])
    network = Logits(method)

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, task_id: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, values, (x, task_id)), y)

    values = {f"net.{name}": p.detach() for name, p in parameters.items()}
    parts = (field.unflatten(0, (len(counts), -1)) for field in samples)
    found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(values, *parts)
    return torch.cat([found[name].flatten(1) for name in values], 1)


class Logits(nn.Module):
    """A method's training logits as a module, for `functional_call`."""

    def __init__(self, method):
        super().__init__()
        self.net, self.forward = method.net, method.logits


def flat(tensors) -> Tensor:
    """(P,) all tensors one after the other."""
    return torch.cat([t.flatten() for t in tensors])


def split(vector: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Views of (P,) in the shapes of the parameters: the inverse of `flat`."""
    pieces = vector.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]


def set_gradients(parameters: list[Tensor], vector: Tensor) -> None:
    """Overwrite `.grad` of the parameters with (P,)."""
    torch._foreach_copy_([p.grad for p in parameters], split(vector, parameters))


def snapshot(parameters: list[Tensor]) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def reptile(parameters: list[Tensor], start: list[Tensor], rate: float) -> None:
    """θ ← θ_start + rate (θ − θ_start); exactly nothing for a rate of 1."""
    torch._foreach_lerp_(parameters, start, 1 - rate)
