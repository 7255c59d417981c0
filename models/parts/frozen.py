"""The base of methods that learn from the features of an encoder and never change the encoder.

What such a method keeps are sums over samples (counts, means, second moments), added once for each task from
un-augmented images: nothing is trained by gradients, so epochs, batches and learning rates have no effect.
Sums are in float64 on a CPU and in float32 on other devices (`SUMS`), where a method does not choose another
type. On CUDA, products of float32 are TF32 by default (`--precision`): factors of ten bits, float32 sums.
Emulated, that costs ridge, ranpac, slda and fecam a tenth of a point of accuracy at most.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.utils.config.options import OptionSet

SUMS = {"cpu": torch.float64}  # the type of sums on each kind of device; float32 elsewhere
ROWS = 4096  # features that are expanded and multiplied at once


class FrozenMethod(Method):
    """Sums over features, and scores of classes made of them; a subclass defines `learn` and `scores`."""

    takes_steps = False
    frozen_encoder = True
    needs_boundaries = True
    chooses_classes = True
    off_switch: ClassVar = "nothing is trained by gradients"

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.counts = self.zeros(self.benchmark.n_classes)  # (C,) samples of each class

    @property
    def feature_dim(self) -> int:
        """The length D of what `encode` gives."""
        return self.net.feature_dim

    def encode(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised images → (N, D) features, the network in eval mode."""
        return self.net.features(x).flatten(1)

    @property
    def dtype(self) -> torch.dtype:
        """The type of sums on the method's device."""
        return SUMS.get(self.device.type, torch.float32)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of a shape on the device, of the type that sums have."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """A step teaches nothing; the trainer takes none (`takes_steps`)."""
        return {"loss": torch.zeros((), device=self.device)}

    def end_task(self, task: Task) -> None:
        """Encode the task's training images once and learn from them."""
        samples = self.benchmark.train(task)
        features = self.evaluate(self.encode, samples.x_raw)
        self.counts += self.one_hot(samples.y).sum(0)
        self.learn(features, samples.y)

    def one_hot(self, y: Tensor) -> Tensor:
        """(N,) labels → (N, C) of zeros and ones, of the type that sums have."""
        return F.one_hot(y, self.benchmark.n_classes).to(self.dtype)

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Add a task's features (N, D) and labels (N,)."""
        raise NotImplementedError(f"{type(self).__name__} must define learn(features, y)")

    def scores(self, features: Tensor) -> Tensor:
        """(N, D) features, of the type that sums have → (N, C), largest for the predicted class."""
        raise NotImplementedError(f"{type(self).__name__} must define scores(features)")

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) scores; a class without a sample has the lowest of all and is never predicted."""
        scores = self.scores(self.encode(x).to(self.dtype)).float()
        return scores.masked_fill(self.counts == 0, torch.finfo(scores.dtype).min)
