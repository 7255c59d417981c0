"""Proxies: guesses of memorization from a single network, while or after it is trained.

One signature for all: a proxy sees every training step (`update`) and gives a score for each sample of a
view (`scores`): higher means more memorized, +inf means never learned so far. Scores are comparable within
a class. A proxy keeps what it needs along training by position in the training set and can be saved.
"""

from functools import cached_property
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Samples
from engram.utils.config import registry
from engram.utils.errors import UserError

CHUNK = {"cpu": 500, "cuda": 4000}  # images per forward pass
# Name → module that defines it, as a class called so in capitals.
NAMES = {
    "learning_order": "trackers", "first_learnt": "trackers", "forgetting_events": "trackers",
    "cumulative_correctness": "trackers",
    "final_loss": "snapshots", "margin": "snapshots", "el2n": "snapshots", "grand": "snapshots",
    "curvature": "snapshots",
    "l2_distance": "distances", "cosine_distance": "distances", "mahalanobis_distance": "distances",
    "normalised_mahalanobis": "distances", "herding_rank": "distances",
}  # fmt: skip


class View:
    """Outputs of a network for samples: clean images, evaluation mode; computed once, when they are read.

    samples: x_raw (n, C, H, W) uint8, y (n,), task_id (n,), index (n,) positions in the training set.
    allowed: (n, classes) bool where each sample's logits are masked to its own task's classes.
    """

    def __init__(self, net: Backbone, augment: Augment, samples: Samples, allowed: Tensor | None = None):
        self.net, self.augment, self.allowed = net, augment, allowed
        self.raw, self.y, self.task_id, self.index = samples

    def __len__(self) -> int:
        return len(self.y)

    def chunks(self, size: int = 0) -> list[slice]:
        """Slices that cut the samples into chunks of `size`, by default as many as fit one forward pass."""
        size = size or CHUNK[self.raw.device.type]
        return [slice(start, start + size) for start in range(0, len(self), size)]

    def images(self, chunk: slice) -> Tensor:
        """The normalised images of a chunk."""
        return self.augment.normalise(self.raw[chunk])

    def masked(self, logits: Tensor, chunk: slice) -> Tensor:
        """The logits of a chunk with other tasks' classes at −inf, where heads are separate."""
        return logits if self.allowed is None else logits.masked_fill(~self.allowed[chunk], -torch.inf)

    @cached_property
    def features(self) -> Tensor:
        """(n, D) activations of the penultimate layer."""
        with torch.no_grad(), evaluating(self.net):
            return torch.cat([self.net.features(self.images(chunk)) for chunk in self.chunks()])

    @cached_property
    def logits(self) -> Tensor:
        """(n, C) logits of all classes."""
        with torch.no_grad(), evaluating(self.net):
            return torch.cat([self.forward(self.images(chunk), chunk) for chunk in self.chunks()])

    def forward(self, x: Tensor, chunk: slice) -> Tensor:
        """Logits for images x of the chunk's samples, which may differ from those of `images`."""
        return self.masked(self.net(x, self.task_id[chunk]), chunk)

    @property
    def losses(self) -> Tensor:
        """(n,) cross-entropy of each sample at its label."""
        return F.cross_entropy(self.logits, self.y, reduction="none")


class evaluating:  # noqa: N801  (reads as a verb: with evaluating(net))
    """Sets evaluation mode inside a block and restores the mode after it."""

    def __init__(self, net: nn.Module):
        self.net = net

    def __enter__(self) -> None:
        self.was_training = self.net.training
        self.net.eval()

    def __exit__(self, *exception: object) -> None:
        self.net.train(self.was_training)


class Proxy:
    """The base of all proxies; one that keeps nothing along training defines `rate` alone."""

    summary = ""

    def __init__(self, n_train: int, device: torch.device):
        self.n_train, self.device = n_train, torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new task begins."""

    def update(self, index: Tensor, logits: Tensor, y: Tensor) -> None:
        """After a forward pass of training on samples `index` (n,): their logits (n, C) and labels."""

    def scores(
        self, net: Backbone, augment: Augment, samples: Samples, allowed: Tensor | None = None
    ) -> Tensor:
        """(n,) float64 for training samples, by what was kept and what the network makes of them now."""
        return self.rate(View(net, augment, samples, allowed))

    def rate(self, view: View) -> Tensor:
        """(n,) float64 scores of the samples in the view; every proxy defines this."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What was kept along training, for a checkpoint."""
        return {k: v for k, v in vars(self).items() if k not in ("n_train", "device")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)


def create(name: str, n_train: int, device: torch.device) -> Proxy:
    """The proxy called `name`, for a training set of `n_train` samples."""
    if name not in NAMES:
        hint = registry.suggest(name, list(NAMES))
        raise UserError(f"--mem_proxy {name}: unknown{hint} (valid: {', '.join(NAMES)})")
    module = import_module(f"engram.memorization.{NAMES[name]}")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    proxy: Proxy = getattr(module, class_name)(n_train, device)
    return proxy
