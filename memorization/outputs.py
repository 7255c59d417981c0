"""Outputs of trained networks for examples: the loss at the label, and whether the prediction is right.

The loss is kept rather than the probability exp(−loss): near 1 a float32 probability has lost what tells
confident networks apart. So has a loss computed in float32 (of logits 18 and 0 it is 0, not 1.5e-8): it is
computed in float64 and then stored as float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.datasets.augment import Augment
from engram.memorization.stacked_networks import StackedNetworks

CHUNK = {"cpu": 250, "cuda": 2000}  # images per forward pass of a stack


@torch.no_grad()
def outputs(
    stack: StackedNetworks, images: Tensor, labels: Tensor, augment: Augment
) -> tuple[Tensor, Tensor]:
    """Loss (K, N) float32 and correctness (K, N) bool, on the CPU; clean images, evaluation mode."""
    stack.train(False)
    losses, hits = [], []
    size = CHUNK[images.device.type]
    for raw, y in zip(images.split(size), labels.split(size), strict=True):
        logits = stack.logits(augment.normalise(raw), shared=True)
        target = y.expand(stack.size, -1)
        flat = F.cross_entropy(logits.flatten(0, 1).double(), target.flatten(), reduction="none")
        losses.append(flat.view(target.shape).float())
        hits.append(logits.argmax(2) == target)
    return torch.cat(losses, 1).cpu(), torch.cat(hits, 1).cpu()
