"""Augmentation: batched, per sample, on the device, on uint8; one call for stream and replay alike."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Random crop and horizontal flip, then normalisation.

    mean, std: per channel, in units of [0, 1] pixels. crop_padding: zero pixels on each side before
    a crop back to the original size (0: no crop). Every sample draws its own window and flip, as
    torchvision's per-image transforms do.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop_padding: int = 0
    flip: bool = False

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) uint8 → (N, C, H, W) float32, augmented and normalised."""
        if self.crop_padding:
            raw = random_crop(raw, self.crop_padding, generator)
        if self.flip:
            raw = random_flip(raw, generator)
        return self.normalise(raw)

    def normalise(self, raw: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → float32 `(raw / 255 − mean) / std`, nothing random."""
        std = torch.tensor(self.std, dtype=torch.float32).view(-1, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32).view(-1, 1, 1)
        scale, shift = 1 / (255 * std), -mean / std
        x = raw.to(torch.float32)
        if len(self.mean) == 1:  # Python scalars spare a broadcast and a copy to the device
            x = x.mul_(scale.item())
            return x.add_(shift.item()) if self.mean[0] else x
        return x.mul_(scale.to(raw.device)).add_(shift.to(raw.device))


def random_crop(raw: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """A random window of each zero-padded image, original size kept."""
    n, _, height, width = raw.shape
    windows = F.pad(raw, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view
    shift = torch.randint(2 * padding + 1, (2, n), generator=generator, device=raw.device)
    return windows[torch.arange(n, device=raw.device), :, shift[0], shift[1]]


def random_flip(raw: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    mirrored = torch.rand(len(raw), generator=generator, device=raw.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), raw.flip(-1), raw)
