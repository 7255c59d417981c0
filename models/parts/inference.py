"""What the network makes of stored or training samples: in eval mode, un-augmented, a chunk at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from engram.models.parts.importance import evaluating
from engram.utils.batching import CHUNK


@torch.no_grad()
def outputs(method, x_raw: Tensor, task_id: Tensor, function: Callable | None = None) -> Tensor:
    """(N, ...) `function(x, task_id)` of the normalised images x; the method's training logits by default."""
    function, size = function or method.logits, CHUNK[method.device.type]
    normalise = method.setup.benchmark.augment.normalise
    with evaluating(method.net):
        chunks = zip(x_raw.split(size), task_id.split(size), strict=True)
        return torch.cat([function(normalise(raw), task) for raw, task in chunks])


def features(method, x_raw: Tensor) -> Tensor:
    """(N, D) penultimate activations."""
    return outputs(method, x_raw, x_raw.new_zeros(len(x_raw)), lambda x, _: method.net.features(x))
