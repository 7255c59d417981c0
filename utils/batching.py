"""Batching: how many images a forward pass without gradients takes at once."""

from collections.abc import Sequence

import torch
from torch import nn

# Images per forward pass: enough to fill a device, little enough for a wide network's activations.
CHUNK = {"cpu": 500, "cuda": 2000}
# Pixels per pass of a convolutional network on a CPU: 32 channels of them are just below 32 MiB. For larger
# blocks the C library maps memory anew each time, and the pass takes 1.4 to 1.7 times as long.
CONVOLUTION_PIXELS = 256_000
# Pixels per pass on a GPU: 256 images of 224x224.
LARGE_PIXELS = 256 * 224 * 224


def evaluation_chunk(network: nn.Module, input_shape: Sequence[int], device: torch.device) -> int:
    """Images of `input_shape` (C, H, W) that the network evaluates at once on the device.

    A network with a `side` brings images to it first.
    """
    size, side = CHUNK[device.type], getattr(network, "side", 0)
    pixels = side * side or input_shape[-1] * (input_shape[-2] if len(input_shape) > 2 else 1)
    if device.type != "cpu":
        return max(1, min(size, LARGE_PIXELS // pixels))
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        return max(1, min(size, CONVOLUTION_PIXELS // pixels))
    return size
