"""Row parallelism: a batch's rows are sharded over the processes of a run (torchrun), with exact results.

`features` of N rows is computed by each process for its shard of them; an all-reduce then gives every process
the features of all N. From there on all processes do the same: head, loss, penalty and memory stay as they
are. In the backward pass each process takes its shard of the gradient through the network, and one all-reduce
sums the parameters' gradients. The sum is the gradient that a single process would have: whatever the loss, a
last batch of any size, however often a method calls the network; penalties, which do not pass through here,
count once. `DistributedDataParallel` averages the gradients of each process's own loss: right for means over
equal shards alone, and it only sees calls of its `forward`. What it has and this has not: messages sent while
the backward pass still runs.

Batch norm takes mean and variance over all N rows. Head and augmentation are computed by every process.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engram.backbones.alexnet import Dropout
from engram.backbones.backbone import Backbone, BatchNorm
from engram.utils import distributed
from engram.utils.errors import UserError


def shard_rows(net: Backbone) -> None:
    """Make `net.features` compute this process's shard of the rows; does nothing in a single process."""
    if distributed.world_size() == 1:
        return
    for layer in net.modules():
        if isinstance(layer, Dropout) and layer.p:
            raise UserError("under torchrun each process would drop other units: add --dropout 0")
        if isinstance(layer, BatchNorm):
            layer.forward = functools.partial(synchronized_batch_norm, layer)  # type: ignore[method-assign]
    net.features = ShardedFeatures(net)  # type: ignore[method-assign]


@contextmanager
def unsharded(net: Backbone) -> Iterator[None]:
    """Inside, each process passes its own rows through the network, without the other processes."""
    sharded_features = vars(net).pop("features", None)
    try:
        yield
    finally:
        if sharded_features is not None:
            net.features = sharded_features  # type: ignore[method-assign]


class ShardedFeatures:
    """Replaces `net.features`; a copy of the network has a copy of it."""

    def __init__(self, net: Backbone):
        self.features = net.features
        self.parameters = [p for name, p in net.named_parameters() if not name.startswith("head.")]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D), the same in every process."""
        learning = [p for p in self.parameters if p.requires_grad and torch.is_grad_enabled()]
        return _GatheredFeatures.apply(self.features, x, *learning)


class _GatheredFeatures(torch.autograd.Function):
    """Forward: the shards' features become those of all rows. Backward: the shards' gradients are summed."""

    @staticmethod
    def forward(ctx: Any, features: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.rows, ctx.parameters = distributed.row_shard(len(x)), parameters
        with torch.set_grad_enabled(bool(parameters)):
            ctx.local = features(x[ctx.rows])
        gathered = ctx.local.new_zeros(len(x), *ctx.local.shape[1:])
        gathered[ctx.rows] = ctx.local.detach()
        return distributed.all_reduce_sum([gathered])[0]  # for each row all processes but one have zeros

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        local = torch.autograd.grad(ctx.local, ctx.parameters, gradient[ctx.rows], materialize_grads=True)
        return None, None, *distributed.all_reduce_sum(local)


def synchronized_batch_norm(layer: BatchNorm, x: Tensor) -> Tensor:
    """The layer's `forward`: in training, with the statistics of all processes' rows."""
    if not layer.training:
        return type(layer).forward(layer, x)  # type: ignore[arg-type]
    y, n, mean, variance = _SynchronizedBatchNorm.apply(x, layer.weight, layer.bias, layer.eps)
    assert layer.running_mean is not None and layer.running_var is not None and layer.momentum is not None
    with torch.no_grad():
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * (n / (n - 1)), layer.momentum)
    return y


class _SynchronizedBatchNorm(torch.autograd.Function):
    """Batch norm over all processes' rows: (n, C, ...) → the same, and count, mean and variance (C,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        ctx.eps, ctx.dims = eps, (0, *range(2, x.dim()))
        n, channels = x.numel() // x.shape[1], x.shape[1]
        local = x.to(weight.dtype)
        local_mean = local.sum(ctx.dims) / max(n, 1)
        local_squares = _centred(local, local_mean).square().sum(ctx.dims)
        table = local.new_zeros(distributed.world_size(), 2 * channels + 1)  # one row for each process
        table[distributed.rank(), 0] = n
        table[distributed.rank(), 1:] = torch.cat((local_mean, local_squares))
        counts, means, squares = distributed.all_reduce_sum([table])[0].split((1, channels, channels), 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count  # pooled statistics: Chan, Golub & LeVeque 1979
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        ctx.save_for_backward(x, weight, count, mean, variance)
        ctx.mark_non_differentiable(count, mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), count, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, mean, variance = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        normal = _scaled(_centred(x.to(weight.dtype), mean), scale)
        grad_weight = (gradient * normal).sum(ctx.dims)
        grad_bias = gradient.to(weight.dtype).sum(ctx.dims)
        slope, level = distributed.all_reduce_sum((grad_weight, grad_bias))
        shift = _scaled(normal, slope) + level.view(-1, *[1] * (x.dim() - 2))
        grad_x = _scaled(gradient - shift / count, weight * scale)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    """x (n, C, ...) minus the mean (C,) of its channel."""
    return x - mean.view(-1, *[1] * (x.dim() - 2))


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x (n, C, ...) times the factor (C,) of its channel."""
    return x * factor.view(-1, *[1] * (x.dim() - 2))
