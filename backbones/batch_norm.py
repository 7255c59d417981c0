"""Batch norm for convolutional backbones: PyTorch's, without the count of its batches."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's layer, whose `num_batches_tracked` stays as it is: 0, or what a checkpoint says.

    Only a momentum of None (a cumulative average) reads the count; adding one to it takes a kernel per layer
    and pass. The buffer itself stays, so that PyTorch's weights and older checkpoints load by name.
    """

    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W), normalised per channel."""
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training, self.momentum, self.eps,
        )  # fmt: skip
