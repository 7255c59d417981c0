"""Single samples: batch norm on 1×1 feature maps cannot learn from one; this is said before training.

Such a layer subtracts the mean of the batch, which is the sample itself. PyTorch raises an error at that
step, which may be the last one of an epoch, hours after the start.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engram.utils.errors import UserError

TORCH_MESSAGE = "Expected more than 1 value per channel when training"
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
REASON = "the network has batch norm on feature maps of 1×1, which cannot learn from a single sample"


@torch.no_grad()
def cannot_learn(network: nn.Module, sample: Tensor) -> bool:
    """Whether some batch norm sees one value per channel of a `sample` (C, H, W); changes nothing."""
    layers = [layer for layer in network.modules() if isinstance(layer, BATCH_NORMS)]
    sizes: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: sizes.append(inputs[0][:1, :1].numel()))
        for layer in layers
    ]
    was_training = network.training
    network.eval()
    try:
        if layers:
            network(sample.unsqueeze(0), torch.zeros(1, dtype=torch.long, device=sample.device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return 1 in sizes


def leaves_one(counts: Iterable[int], batch_size: int) -> bool:
    """Whether the last batch of one of these numbers of samples holds a single sample."""
    return any((count - 1) % batch_size == 0 for count in counts)


def refuse(counts: list[int], batch_size: int) -> None:
    """Raise the `UserError` that names the batch sizes near by which leave no single sample."""
    count = next(count for count in counts if leaves_one([count], batch_size))
    below = next((size for size in range(batch_size - 1, 1, -1) if not leaves_one(counts, size)), None)
    above = next(
        (size for size in range(batch_size + 1, max(counts) + 1) if not leaves_one(counts, size)), None
    )
    working = " or ".join(str(size) for size in (below, above) if size)
    advice = f"--batch_size {working} leaves none" if working else "choose a network without batch norm"
    raise UserError(
        f"--batch_size {batch_size} leaves 1 of {count} samples for the last step, and {REASON}; {advice}"
    )


@contextmanager
def explained() -> Iterator[None]:
    """Inside, PyTorch's error about a single sample is a `UserError` that says which flags to change."""
    try:
        yield
    except ValueError as error:
        if TORCH_MESSAGE not in str(error):
            raise
        raise UserError(
            f"{REASON}; give a --batch_size, --minibatch_size or --buffer_size that leaves no batch of one"
        ) from error
