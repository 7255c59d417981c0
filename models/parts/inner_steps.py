"""Inner steps: what the methods of the MER and GEM papers do with single samples and their gradients.

P: number of parameters, as one flat vector in the order given. T: tasks. n: samples.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from engram.datasets.augment import Augment, Standardised
from engram.models.method import Method, Setup
from engram.models.parts.kernel import MLPKernel
from engram.models.rehearsal import Examples
from engram.utils import precision
from engram.utils.compat import foreach_add_, foreach_copy_, foreach_lerp_


class InnerSteps:
    """Steps and gradients on a few samples at a time, for the network of one method.

    All are written with autograd. Where the network is a small perceptron on the CPU and the optimizer is
    plain SGD, a compiled kernel takes over: it equals autograd up to float32 rounding
    (tests/reference/test_kernel.py); scripts/bench/mer.py measures how much faster it is. The choice is made
    here, once, when the method is built; methods do not ask for it.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.kernel = kernel_for(method.net, method.setup)
        if self.kernel is not None and method.setup.precision == "bf16":  # the kernel has none
            method.setup = replace(method.setup, precision="fp32")
            precision.use("fp32", method.net)

    def step(self, samples: Examples, weights: Tensor | None = None) -> Tensor:
        """One step of SGD on `weighted_loss`, which is returned, detached."""
        optimizer = self.method.optimizer
        if self.kernel is not None:
            if weights is None:
                weights = torch.full((len(samples.y),), 1 / len(samples.y))
            return self.kernel.step(samples.x, samples.y, weights, optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        loss = weighted_loss(self.method.logits(samples.x, samples.task_id), samples.y, weights)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def sequential_sgd(self, samples: Examples, lr: float, scale: Tensor | None = None) -> Tensor:
        """θ ← θ − lr · scale_i ∇CE(f(x_i), y_i) for one sample after the other.

        scale: (n,), ones by default. Returns (n,) losses, unscaled, each before its own step.
        """
        if self.kernel is not None:
            return self.kernel.sequence(samples.x, samples.y, lr, scale)
        parameters, losses = list(self.method.trainable().values()), []
        for i, (x, y, task_id) in enumerate(zip(*(field.split(1) for field in samples), strict=True)):
            loss = F.cross_entropy(self.method.logits(x, task_id), y)
            scaled = loss if scale is None else scale[i] * loss
            gradients = torch.autograd.grad(scaled, parameters, materialize_grads=True)
            with torch.no_grad():
                foreach_add_(parameters, gradients, alpha=-lr)
            losses.append(loss.detach())
        return torch.stack(losses)

    def reptile_sgd(
        self, batches: list[Examples], lr: float, within: float, across: float, scales: list[Tensor | None]
    ) -> Tensor:
        """MER's inner loops: `sequential_sgd` through each batch, then Reptile, and Reptile over all of them.

        θ ← θ^W + within (θ − θ^W) after each batch, θ^W being its start, and the same with `across` and the
        start of all. batches: of equal size n. Returns the (n,) losses of the first.
        """
        if self.kernel is not None:
            x, y = (torch.cat(field) for field in list(zip(*batches, strict=True))[:2])
            scale = None if scales[0] is None else torch.cat(scales)
            losses = self.kernel.reptile(x, y, lr, len(batches), within, across, scale)
            return losses[: len(batches[0].y)]
        parameters, first = list(self.method.trainable().values()), None
        before = snapshot(parameters)  # θ^A_0
        for samples, scale in zip(batches, scales, strict=True):
            start = snapshot(parameters)  # θ^W_0
            losses = self.sequential_sgd(samples, lr, scale)
            first = losses if first is None else first
            reptile(parameters, start, within)
        reptile(parameters, before, across)
        return first

    def inputs(self, raw: Tensor) -> Tensor:
        """Stored images as `gradients_by_part` takes them: raw if the kernel normalises, else augmented."""
        return raw if self.kernel is not None and self.kernel.takes_raw else self.method.augment(raw)

    def gradients_by_part(
        self, parameters: dict[str, Tensor], samples: Examples, counts: list[int]
    ) -> Tensor:
        """(T, P) gradients of the mean loss on each of the T parts, of `counts` samples, of the samples.

        Parts of equal size are one batched pass, unless the network keeps statistics (batch norm); the kernel
        takes any sizes.
        """
        if self.kernel is not None:
            n = torch.tensor(counts)
            return self.kernel.gradients(samples.x, samples.y, (1 / n).repeat_interleave(n), counts)
        method = self.method
        if len(set(counts)) > 1 or any(True for _ in method.net.buffers()):
            parts, learning = zip(*(f.split(counts) for f in samples), strict=True), list(parameters.values())
            losses = (F.cross_entropy(method.logits(x, task_id), y) for x, y, task_id in parts)
            return torch.stack([gradient(loss, learning) for loss in losses])
        network = Logits(method.net, method.logits)

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, task_id: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(network, values, (x, task_id)), y)

        values = {f"net.{name}": p.detach() for name, p in parameters.items()}
        parts = (field.unflatten(0, (len(counts), -1)) for field in samples)
        gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0))(values, *parts)
        return torch.cat([gradients[name].flatten(1) for name in values], 1)


def kernel_for(net: nn.Module, setup: Setup) -> MLPKernel | None:
    """The compiled kernel for a network; None where it, or plain SGD, does not fit."""
    train = setup.train
    plain = train.optimizer == "sgd" and not train.optim_mom and not train.optim_wd
    plain = plain and train.encoder_lr_scale == 1
    plain = plain and setup.benchmark.train_classes == "all"  # its softmax is over all outputs
    if not (plain and MLPKernel.fits(net, setup.device)):
        return None
    kernel = MLPKernel(net, pixel_values(setup.benchmark.augment))
    # compile, or load what was compiled, now: it takes seconds that are not training
    x, y = torch.empty(0, kernel.n_inputs), torch.empty(0, dtype=torch.long)
    kernel.reptile(x, y, 0.0)
    kernel.step(x, y, torch.empty(0), 0.0)
    kernel.gradients(x, y, torch.empty(0), [])
    return kernel


def pixel_values(augment: Augment) -> Tensor | None:
    """(256,) what each pixel value becomes on its way into the network; None where that is not all."""
    if augment.draws or augment.side or len(augment.mean) > 1 or isinstance(augment, Standardised):
        return None
    return augment.normalise(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)).flatten()


def weighted_loss(logits: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Scalar Σ_i w_i CE(z_i, y_i) of logits z (n, C) and labels y (n,); the mean without weights (n,)."""
    if weights is None:
        return F.cross_entropy(logits, y)
    return (weights * F.cross_entropy(logits, y, reduction="none")).sum()


def gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    """(P,) gradient of a scalar loss; `.grad` stays as it is."""
    return flat(torch.autograd.grad(loss, parameters, materialize_grads=True))


class Logits(nn.Module):
    """A function (x, task_id) → (N, C) logits as a module around its network, for `functional_call`."""

    def __init__(self, net: nn.Module, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.forward = net, logits


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """(P,) all tensors one after the other."""
    return torch.cat([t.flatten() for t in tensors])


def split(vector: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Views of (P,) in the shapes of the parameters: the inverse of `flat`."""
    pieces = vector.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]


def set_gradients(parameters: list[Tensor], vector: Tensor) -> None:
    """Overwrite `.grad` of the parameters with (P,)."""
    foreach_copy_([p.grad for p in parameters], split(vector, parameters))


def snapshot(parameters: list[Tensor]) -> list[Tensor]:
    """Copies of the parameters as they are now."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def reptile(parameters: list[Tensor], start: list[Tensor], rate: float) -> None:
    """θ ← θ_start + rate (θ − θ_start); exactly nothing for a rate of 1."""
    foreach_lerp_(parameters, start, 1 - rate)
