"""Rainbow Memory (RM): ER on exemplars of all degrees of uncertainty, from certain to doubtful.

Source: Bang et al. 2021, "Rainbow Memory: Continual Learning with a Memory of Diverse Samples" (arXiv
2103.17230), eqs. 1-4 and Algorithm 1. When a task ends, u(x) = 1 − max_c S_c / A for the samples of the
task and of the memory, S_c of A perturbed views being classified as c; per class, in the order of u,
the samples at j n / k are kept, j = 0, ..., k − 1. The A = 12 views are those of the official code
("vr"): cutouts of 1/4, 1/2, 3/4 and the whole side, two random flips, rotations of up to 45 and 90
degrees, inversion, three solarisations. Stored: uint8 images.
Differs from the paper: training is ER's, with the stream's augmentation (there CutMix and AutoAugment
too); a class of each task has the same share, so domains have one; ties in u stay in the order of the
data, stored samples first.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarReplay
from engram.models.parts.inputs import require_images
from engram.models.rehearsal import ReplayOptions
from engram.utils.transfer import send

CUTOUTS, ROTATIONS, SOLARISATIONS = (0.25, 0.5, 0.75, 1.0), (45, 90), (128, 64, 32)


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of Rainbow Memory."""


class RainbowMemory(ExemplarReplay):
    """ER; every class's exemplars are chosen again at the end of each task."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        require_images(setup.benchmark, "rainbow_memory, which turns and inverts images,")
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def end_task(self, task: Task) -> None:
        """Strides over the uncertainty of what is stored and what is new."""
        if not self.buffer.size:
            return
        samples = self.task_samples(task)
        samples["x"] = samples["x"][:]  # views are made of all images at once: none may be left on disk
        pools = [samples] if not len(self.buffer) else [self.buffer.stored(), samples]
        doubt = torch.cat([self.uncertainty(pool["x"], pool["task_id"]) for pool in pools])
        self.buffer.renew(task.id, lambda rows, k: rows[strides(doubt[rows], k)], reselect=True, **samples)

    def uncertainty(self, raw: Tensor, task_id: Tensor) -> Tensor:
        """(N,) 1 − the share of views that the most popular of the classes seen gets."""
        seen = self.benchmark.class_masks[: self.task.id + 1].any(0)

        def votes(x: Tensor, task_id: Tensor) -> Tensor:
            logits = self.logits(x, task_id).masked_fill(~seen, -torch.inf)
            return F.one_hot(logits.argmax(1), logits.shape[1])

        views = (self.evaluate(votes, view, task_id) for view in perturbed(raw, self.draws))
        total = sum(views)
        return 1 - total.amax(1) / total.sum(1)


def strides(doubt: Tensor, k: int) -> Tensor:
    """min(k, n) rows of (n,) at equal distances in ascending order."""
    n = len(doubt)
    ranks = torch.arange(min(k, n), device=doubt.device) * n // min(k, n)
    return doubt.sort(stable=True).indices[ranks]


def perturbed(raw: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The 12 views of images (N, C, H, W) uint8, one set after the other; draws from the host."""
    for share in CUTOUTS:
        yield cutout(raw, share, generator)
    for axis in (-1, -2):
        flipped = send(torch.rand(len(raw), generator=generator) < 0.5, raw.device)
        yield torch.where(flipped.view(-1, 1, 1, 1), raw.flip(axis), raw)
    for degrees in ROTATIONS:
        yield rotated(raw, degrees, generator)
    yield 255 - raw
    for threshold in SOLARISATIONS:
        yield torch.where(raw < threshold, raw, 255 - raw)


def cutout(raw: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image without a square of `share` of the side around a random pixel: black there."""
    near = []
    for size in raw.shape[2:]:
        half = int(share * size) // 2
        centre = torch.randint(size, (len(raw), 1), generator=generator)
        near.append((torch.arange(size) - centre >= -half) & (torch.arange(size) - centre < half))
    box = (near[0].unsqueeze(2) & near[1].unsqueeze(1)).unsqueeze(1)
    return raw.masked_fill(send(box, raw.device), 0)


def rotated(raw: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Each image turned by its own angle, uniform in ±degrees; nearest pixels, black corners."""
    angle = (2 * torch.rand(len(raw), generator=generator) - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = send(torch.stack((cos, -sin, zero, sin, cos, zero), 1).view(-1, 2, 3), raw.device)
    grid = F.affine_grid(matrix, list(raw.shape), align_corners=False)
    return F.grid_sample(raw.float(), grid, "nearest", align_corners=False).to(torch.uint8)
