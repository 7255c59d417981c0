"""Augmentation: size, random crop, flip and normalisation of a batch of uint8 images, on their device.

Every sample has its own random window; the stream's and replayed images are augmented by the same call.
Memories hold images as they are stored, before all of this: 32x32 ones that a network sees at 224x224 stay
32x32 there.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from engram.datasets import resampling
from engram.utils.config.config import Config
from engram.utils.config.stream_options import StreamOptions
from engram.utils.errors import UserError
from engram.utils.transfer import kept

RESIZED = "random_resized_crop"


@dataclass(frozen=True)
class Augment:
    """Size, random crop and horizontal flip, then normalisation.

    mean, std: per channel, in units of [0, 1] pixels. crop_padding: zero pixels on each side before
    a crop back to the original size (0: no crop). side: of the images that come out (0: as they are
    stored); resize: to which the shorter side is scaled before the centre of `side` is cut (0: `side`).
    crop_scale: the least and the most of an image's area that a random box shows, which replaces all of
    these but `side` in training (none: no box). Every sample draws its own window and flip, as
    torchvision's per-image transforms do.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop_padding: int = 0
    flip: bool = False
    side: int = 0
    resize: int = 0
    crop_scale: tuple[float, ...] = ()

    def __call__(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) uint8 as stored → float32 of `shape_of` each, augmented and normalised."""
        if self.crop_scale:
            n, _, height, width = raw.shape
            boxes = resampling.draw_boxes(n, height, width, self.crop_scale, generator, raw.device)
            return self.scaled(resampling.resized_boxes(raw, boxes, self.side))
        raw = self.fitted(raw)
        if self.draws:
            raw = random_windows(raw, self.crop_padding, self.flip, generator)
        return self.scaled(raw)

    @property
    def draws(self) -> bool:
        """Whether anything is random; if not, an image is the same in every epoch."""
        return bool(self.crop_padding or self.flip or self.crop_scale)

    def shape_of(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (C, H, W) in which the network sees images that are stored in this one."""
        return (stored[0], self.side, self.side) if self.side else stored

    def notes(self, stored: Sequence[int]) -> list[str]:
        """A line on what becomes of images that are stored as (C, H, W), if their size changes."""
        if not self.side:
            return []
        lines = []
        if self.resize or tuple(stored[1:]) != (self.side, self.side):
            cut = f", the centre of {self.resize}x{self.resize}" if self.resize else ""
            lines.append(f"images of {stored[2]}x{stored[1]} are seen at {self.side}x{self.side}{cut}")
        if self.crop_scale:
            smallest, largest = (f"{100 * share:g}" for share in self.crop_scale)
            lines.append(f"training images are random boxes of {smallest} to {largest} % of them")
        return lines

    def fitted(self, raw: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → the same images at the size in which the network sees them."""
        if not self.side or (raw.shape[2:] == (self.side, self.side) and not self.resize):
            return raw
        return resampling.fitted(raw, self.side, self.resize)

    def limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest normalised value of each pixel, of the shape of `like`."""
        black, white = (torch.full_like(like, value, dtype=torch.uint8) for value in (0, 255))
        return self.scaled(black), self.scaled(white)

    def normalise(self, raw: Tensor) -> Tensor:
        """(N, C, H, W) uint8 as stored → float32 at the size that the network sees, nothing random."""
        return self.scaled(self.fitted(raw) if self.side else raw)

    def scaled(self, raw: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → float32 `(raw / 255 − mean) / std`; a new tensor.

        Anything else is refused: floats would be divided by 255 as well, and in place.
        """
        if raw.dtype != torch.uint8:
            raise UserError(
                f"these samples are {raw.dtype}; images are normalised from uint8, pixels 0 to 255: "
                "convert them with (255 * x).round().to(torch.uint8) for x in [0, 1]"
            )
        scale, shift = affine(self.mean, self.std, raw.device)
        if len(self.mean) == 1:  # Python scalars spare a broadcast and a call: in float32, as below
            x = raw * scale
            return x.add_(shift) if self.mean[0] else x
        return raw.to(torch.float32).mul_(scale).add_(shift)


class Standardised(Augment):
    """For samples that are float32 already and standardised (`array_values.py`): they stay as they are."""

    def limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Minus and plus infinity: such samples have no smallest and no largest value."""
        return torch.full_like(like, -torch.inf), torch.full_like(like, torch.inf)

    def scaled(self, raw: Tensor) -> Tensor:
        """A copy of the float32 samples (N, ...), so that what a method does to it stays its own."""
        assert raw.dtype == torch.float32, raw.dtype
        return raw.clone()


def without_draws(samples: Tensor) -> Augment:
    """How a user's own arrays are seen: bytes scaled to [0, 1], standardised floats as they are; no crop."""
    return Augment() if samples.dtype == torch.uint8 else Standardised()


@lru_cache(maxsize=16)
def affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor | float, Tensor | float]:
    """Scale and shift that normalise a raw pixel: (C, 1, 1) tensors, or numbers where there is one channel.

    Cached, since copying them to the device for every batch would make each step wait for it.
    """
    over = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
    scale, shift = 1 / (255 * over), -torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / over
    return (scale.to(device), shift.to(device)) if len(mean) > 1 else (float(scale), float(shift))


def as_asked(augment: Augment, config: Config, input_shape: Sequence[int]) -> Augment:
    """The augmentation of stored images (C, H, W) as the flags, or pre-trained weights, want it."""
    n_channels = input_shape[0]
    augment = _with_geometry(augment, config.stream, input_shape)
    expected, stream = config.architecture.pixels(config.run.backbone), config.stream
    if not (expected or stream.pixel_mean or stream.pixel_std):
        return augment
    if isinstance(augment, Standardised):
        raise UserError("--pixel_mean, --pixel_std, --pretrained: for pixels; these floats are standardised")
    mean, std = expected or (augment.mean, augment.std)
    if expected and n_channels == 1:  # grey images, which the network repeats into the weights' channels
        mean, std = ((sum(values) / len(values),) for values in expected)
    mean = _for_channels("mean", stream.pixel_mean or mean, n_channels)
    return replace(augment, mean=mean, std=_for_channels("std", stream.pixel_std or std, n_channels))


def _with_geometry(augment: Augment, stream: StreamOptions, input_shape: Sequence[int]) -> Augment:
    """The augmentation with the size of --img_size and the crops of --augment."""
    resampled = "--img_size" if stream.img_size else ""
    resampled = resampled or ("--augment random_resized_crop" if stream.augment == RESIZED else "")
    if len(input_shape) != 3 and (resampled or stream.augment == "crop_flip"):
        flag = resampled or "--augment crop_flip"
        raise UserError(f"{flag}: samples are vectors of {input_shape[0]} numbers, not images")
    if resampled and isinstance(augment, Standardised):
        raise UserError(f"{resampled}: for images with pixels 0 to 255; these floats are standardised")
    shorter = min(input_shape[1:], default=0)
    if stream.img_size:
        padding = augment.crop_padding * stream.img_size // shorter
        augment = replace(augment, crop_padding=padding, side=stream.img_size, resize=stream.test_resize)
    if stream.augment is None:
        return augment
    augment = replace(augment, crop_padding=0, flip=stream.augment != "none", crop_scale=())
    if stream.augment == "crop_flip":
        return replace(augment, crop_padding=(augment.side or shorter) // 8)
    if stream.augment == RESIZED:
        if not augment.side and shorter != max(input_shape[1:]):
            raise UserError(f"--augment {RESIZED}: makes square images, and these are not: give --img_size")
        return replace(augment, crop_scale=stream.crop_scale, side=augment.side or shorter)
    return augment


def _for_channels(name: str, values: tuple[float, ...], n_channels: int) -> tuple[float, ...]:
    """The values of --pixel_NAME, one for each channel."""
    if len(values) not in (1, n_channels):
        given = ",".join(map(str, values))
        raise UserError(f"--pixel_{name} {given}: give one number, or one a channel ({n_channels} in all)")
    return values * (n_channels // len(values))


class Windows(NamedTuple):
    """Top left corner of each of N windows in the padded image, and whether the window is mirrored; (N,)."""

    top: Tensor
    left: Tensor
    mirrored: Tensor


def draw_windows(
    n: int, padding: int, flip: bool, generator: torch.Generator, device: torch.device
) -> Windows:
    """Uniform windows of n padded images; if `flip`, each is mirrored with probability one half."""
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator, device=device)
    if flip:
        return Windows(top, left, torch.rand(n, generator=generator, device=device) < 0.5)
    return Windows(top, left, torch.zeros_like(top, dtype=torch.bool))


def random_windows(raw: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """A random window of each zero-padded image, original size kept, mirrored or not with equal chance."""
    return cut_windows(raw, padding, flip, draw_windows(len(raw), padding, flip, generator, raw.device))


def cut_windows(raw: Tensor, padding: int, flip: bool, windows: Windows) -> Tensor:
    """The given window of each zero-padded image, original size kept, mirrored or not.

    Each row of a window is a run of bytes at a computed offset, so one `index_select` over overlapping runs
    copies them all: several times faster on a CPU than indexing a view of all windows.
    """
    n, channels, height, width = raw.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    plane, kinds = tall * wide, 1 + flip  # the image, and its mirror image
    padded = raw.new_zeros(n, kinds, channels, tall, wide)
    inner = padded[..., padding : padding + height, padding : padding + width]
    inner[:, 0] = raw
    top, left, mirrored = windows
    if flip:
        inner[:, 1] = raw.flip(-1)
        left = torch.where(mirrored, channels * plane + 2 * padding - left, left)  # the same window, mirrored
    corner = torch.add(left, top, alpha=wide)
    distances = (kinds * channels * plane, plane, wide)
    starts = kept(first_runs((n, channels, height), distances, raw.device, threading.get_ident()))
    runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, (starts + corner.view(-1, 1, 1)).flatten()).view(raw.shape)


@lru_cache(maxsize=16)
def first_runs(
    counts: tuple[int, ...], distances: tuple[int, ...], device: torch.device, thread: int
) -> Tensor:
    """Offsets, in bytes, at which the rows of every image begin, (n, channels, rows).

    counts: n, channels, rows. distances: bytes from one image, channel and row to the next. Cached from
    batch to batch: computing it anew is a third of the time of cutting a small batch. Each thread has
    its own, since a CUDA stream must not read what another may not have written yet
    (utils/training/interleaved.py).
    """
    images, channels, rows = (
        torch.arange(count, device=device) * distance
        for count, distance in zip(counts, distances, strict=True)
    )
    return images.view(-1, 1, 1) + channels.view(-1, 1) + rows
