"""Shares: a network whose rows are divided among the processes of a run (torchrun), exactly.

`features` of N rows is computed by each process for its share of them; then every process gets the
features of all N. From there on all of them do the same: head, loss, penalty, memory, all untouched. In
the backward pass each takes its rows of the gradient through the network, and the sum over processes of
the parameters' gradients, one message, is the gradient that one process would have: whatever the loss, a
last batch of any size, however often a method calls the network; penalties, which do not pass through
here, count once. `DistributedDataParallel` averages what each process's own loss gives: right for means
over equal shares alone, and it only sees calls of its `forward`. What it has and this has not: messages
sent while the backward pass still runs.

Batch norm takes mean and variance over all N rows. Head and augmentation are computed by every process.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from engram.backbones.alexnet import Dropout
from engram.backbones.backbone import Backbone
from engram.utils import distributed
from engram.utils.errors import UserError


def divide(net: Backbone) -> None:
    """From now on `net.features` computes this process's rows alone; nothing is done in a single process."""
    if distributed.world_size() == 1:
        return
    for layer in net.modules():
        if isinstance(layer, Dropout) and layer.p:
            raise UserError("under torchrun each process would drop other units: add --dropout 0")
        if isinstance(layer, _BatchNorm):
            layer.forward = functools.partial(batch_norm, layer)
    net.features = Share(net)


@contextmanager
def undivided(net: Backbone) -> Iterator[None]:
    """Inside, each process computes whatever rows it gives to the network, on its own."""
    divided = vars(net).pop("features", None)
    try:
        yield
    finally:
        if divided is not None:
            net.features = divided


class Share:
    """Stands in for `net.features`. A copy of the network has its own."""

    def __init__(self, net: Backbone):
        self.features = net.features
        self.parameters = [p for name, p in net.named_parameters() if not name.startswith("head.")]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D), the same in every process."""
        learning = [p for p in self.parameters if p.requires_grad and torch.is_grad_enabled()]
        return _Features.apply(self.features, x, *learning)


class _Features(torch.autograd.Function):
    """Features of one's own rows to all rows; gradients of one's own rows to all rows' gradients."""

    @staticmethod
    def forward(ctx, features: Callable, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.rows, ctx.parameters = distributed.row_shard(len(x)), parameters
        with torch.set_grad_enabled(bool(parameters)):
            ctx.own = features(x[ctx.rows])
        whole = ctx.own.new_zeros(len(x), *ctx.own.shape[1:])
        whole[ctx.rows] = ctx.own.detach()
        return distributed.all_reduce_sum([whole])[0]  # of each row all processes but one have zeros

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.autograd.grad(ctx.own, ctx.parameters, gradient[ctx.rows], materialize_grads=True)
        return None, None, *distributed.all_reduce_sum(gradients)


def batch_norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The layer's `forward`: in training, with the statistics of all processes' rows."""
    if not layer.training:
        return type(layer).forward(layer, x)
    y, n, mean, variance = _Normalised.apply(x, layer.weight, layer.bias, layer.eps)
    with torch.no_grad():
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * (n / (n - 1)), layer.momentum)
    return y


class _Normalised(torch.autograd.Function):
    """Batch norm over all processes' rows: (n, C, ...) → the same, and count, mean and variance (C,)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        ctx.eps, ctx.dims = eps, (0, *range(2, x.dim()))
        n, channels = x.numel() // x.shape[1], x.shape[1]
        own = x.to(weight.dtype)
        own_mean = own.sum(ctx.dims) / max(n, 1)
        table = own.new_zeros(distributed.world_size(), 2 * channels + 1)
        table[distributed.rank(), 0] = n
        table[distributed.rank(), 1:] = torch.cat((own_mean, _centred(own, own_mean).square().sum(ctx.dims)))
        counts, means, squares = distributed.all_reduce_sum([table])[0].split((1, channels, channels), 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count  # as one: Chan, Golub & LeVeque 1979
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        ctx.save_for_backward(x, weight, count, mean, variance)
        ctx.mark_non_differentiable(count, mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), count, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, mean, variance = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        normal = _scaled(_centred(x.to(weight.dtype), mean), scale)
        of_weight, of_bias = (gradient * normal).sum(ctx.dims), gradient.to(weight.dtype).sum(ctx.dims)
        slope, level = distributed.all_reduce_sum((of_weight, of_bias))
        shift = _scaled(normal, slope) + level.view(-1, *[1] * (x.dim() - 2))
        of_x = _scaled(gradient - shift / count, weight * scale)
        return of_x.to(x.dtype), of_weight, of_bias, None


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    return x - mean.view(-1, *[1] * (x.dim() - 2))


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor.view(-1, *[1] * (x.dim() - 2))
