"""Resampling: a batch of uint8 images brought to another side, whole or each from a box of its own.

It computes what torchvision's `resize`, `center_crop` and `resized_crop` do with antialiasing (bicubic), on
the device of the images. Each image of a batch has its own box, which `F.interpolate` does not offer and
`grid_sample` offers without antialiasing. Bicubic interpolation is linear in the pixels and separable, so it
is a product with two matrices, one for the rows and one for the columns of each box: pixels outside the box
have weight 0. With --precision tf32 these products round as the network's do, which moves a pixel by 1 at
most.
"""

from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10  # draws of a box that fits into the image, as in torchvision
RATIO = (3 / 4, 4 / 3)  # of a box, width to height
CUBIC = -0.5  # the parameter a of the cubic filter that PIL and PyTorch use with antialiasing


class Boxes(NamedTuple):
    """A box in each of N images, in whole pixels, and whether what it shows is mirrored; all (N,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor


def fitted(raw: Tensor, side: int, resize: int = 0) -> Tensor:
    """(N, C, H, W) uint8 → (N, C, side, side): the shorter side scaled to `resize`, then the centre cut.

    resize: `side` where it is 0, so that a square image is only scaled.
    """
    height, width = raw.shape[2:]
    shorter = resize or side
    tall = shorter if height <= width else int(shorter * height / width)
    wide = shorter if width <= height else int(shorter * width / height)
    if (tall, wide) != (height, width):
        raw = to_bytes(F.interpolate(raw.float(), (tall, wide), mode="bicubic", antialias=True))
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    return raw[..., top : top + side, left : left + side]


def draw_boxes(
    n: int, height: int, width: int, scale: tuple[float, ...], generator: torch.Generator,
    device: torch.device,
) -> Boxes:  # fmt: skip
    """Random boxes as torchvision's RandomResizedCrop draws them; each is mirrored with probability 1/2.

    scale: the smallest and largest share of the image's area, drawn uniformly; the ratio of the sides is
    uniform in its logarithm. Of ten such boxes the first that fits is taken, else the largest in the centre.
    """
    shares, ratios = torch.rand((2, TRIES, n), generator=generator, device=device)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * shares)
    ratios = (log(RATIO[0]) + (log(RATIO[1]) - log(RATIO[0])) * ratios).exp()
    wide, tall = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    order = torch.arange(TRIES, 0, -1, device=device).unsqueeze(1)
    first = (fits * order).argmax(0, keepdim=True)
    any_fits = fits.any(0)
    wide = torch.where(any_fits, wide.gather(0, first)[0], float(min(width, round(height * RATIO[1]))))
    tall = torch.where(any_fits, tall.gather(0, first)[0], float(min(height, round(width / RATIO[0]))))
    corners = torch.rand((2, n), generator=generator, device=device)
    above, beside = height - tall, width - wide  # the room for a box
    top = torch.where(any_fits, torch.minimum((corners[0] * (above + 1)).floor(), above), (above / 2).floor())
    left = torch.where(
        any_fits, torch.minimum((corners[1] * (beside + 1)).floor(), beside), (beside / 2).floor()
    )
    mirrored = torch.rand(n, generator=generator, device=device) < 0.5
    return Boxes(top, left, tall, wide, mirrored)


def resized_boxes(raw: Tensor, boxes: Boxes, side: int) -> Tensor:
    """(N, C, H, W) uint8 → (N, C, side, side) uint8: what each box shows, scaled, mirrored or not."""
    n, channels, height, width = raw.shape
    columns = weights(boxes.left, boxes.width, width, side)
    columns = torch.where(boxes.mirrored.view(-1, 1, 1), columns.flip(1), columns)
    rows = weights(boxes.top, boxes.height, height, side)
    narrowed = torch.bmm(raw.float().reshape(n, channels * height, width), columns.transpose(1, 2))
    return to_bytes(rows.unsqueeze(1) @ narrowed.view(n, channels, height, side))


def weights(start: Tensor, length: Tensor, n_pixels: int, side: int) -> Tensor:
    """(N, side, n_pixels): what each pixel of a line adds to each of `side` pixels made of a part of it.

    start, length: (N,) the part of the line, whose `n_pixels` are numbered from 0.
    """
    scale = (length / side).view(-1, 1, 1)
    centres = scale * (torch.arange(side, device=start.device) + 0.5).view(1, -1, 1)
    inside = torch.arange(n_pixels, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    filtered = cubic((inside + 0.5 - centres) / scale.clamp_min(1))
    filtered = filtered * ((inside >= 0) & (inside < length.view(-1, 1, 1)))
    return filtered / filtered.sum(2, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic filter, which is 0 from a distance of two pixels on (Keys 1981, eq. 15)."""
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def to_bytes(pixels: Tensor) -> Tensor:
    """Float pixels as uint8, rounded; the cubic filter overshoots 0 and 255, which is cut off."""
    return pixels.round_().clamp_(0, 255).to(torch.uint8)
