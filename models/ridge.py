"""Ridge regression from features to one-hot labels, from second moments summed over all tasks.

Source: McDonnell et al. 2023, "RanPAC: Random Projections and Pre-trained Models for Continual Learning"
(arXiv 2307.02251), section 4 without projection ("no RP"): G = Σ h hᵀ, Q = Σ h yᵀ over un-augmented images,
W = (G + λI)⁻¹ Q, ŷ = argmax_c hᵀW. For a fixed λ it is joint ridge regression, whatever the order of tasks.
λ as in its code: by default (`--ridge_lambda 0`) each task chooses it among 10⁻⁸, ..., 10⁸ by the mean
squared error on a fifth of its own samples, with the moments of the rest; the last choice holds for all.
Differs from that code: one eigendecomposition serves all values of λ (there a solve for each of them).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.frozen import ROWS, FrozenMethod
from engram.models.parts.least_squares import held_out_errors, solve
from engram.utils.config.options import OptionSet, option
from engram.utils.transfer import send

STRENGTHS = tuple(10.0**power for power in range(-8, 9))
HELD_OUT = 0.2  # of a task's samples, to choose λ


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of ridge regression."""

    ridge_lambda: float = option(0.0, "λ; 0: each task chooses it on a fifth of its own samples", ge=0)


class Ridge(FrozenMethod):
    """Second moments, solved anew after each task."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        width, n_classes = self.width(net.feature_dim), self.benchmark.n_classes
        self.gram, self.cross = self.zeros(width, width), self.zeros(width, n_classes)
        self.weights = self.zeros(width, n_classes)

    def width(self, feature_dim: int) -> int:
        """The number of inputs M of the regression that `expand` makes of a feature."""
        return feature_dim

    def expand(self, features: Tensor) -> Tensor:
        """(N, D) features → (N, M) inputs of the regression: the features themselves."""
        return features

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Add the task's moments, choose λ and solve."""
        targets = self.one_hot(y)
        strength = self.options.ridge_lambda or self.choose_strength(features, targets)
        gram, cross = self.moments(features, targets)
        self.gram += gram
        self.cross += cross
        self.weights = solve(self.gram, self.cross, strength)

    def moments(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(M, M) HᵀH and (M, C) HᵀY of the inputs H, a block of rows at a time."""
        gram, cross = torch.zeros_like(self.gram), torch.zeros_like(self.cross)
        for rows, labels in zip(features.split(ROWS), targets.split(ROWS), strict=True):
            inputs = self.expand(rows.to(self.dtype))
            gram.addmm_(inputs.T, inputs)
            cross.addmm_(inputs.T, labels)
        return gram, cross

    def choose_strength(self, features: Tensor, targets: Tensor) -> float:
        """The λ of least error on samples of the task that are held out; 1 where there are too few."""
        order = send(torch.randperm(len(features), generator=self.draws), self.device)
        held_out, fitted = order.tensor_split([int(HELD_OUT * len(order))])
        if not len(held_out):
            return 1.0
        inputs = self.expand(features[held_out].to(self.dtype))
        if len(fitted) < len(self.gram):  # the same solutions, of a smaller system
            x = self.expand(features[fitted].to(self.dtype))
            gram, cross, inputs = x @ x.T, targets[fitted], inputs @ x.T
        else:
            gram, cross = self.moments(features[fitted], targets[fitted])
        errors = held_out_errors(gram, cross, inputs, targets[held_out], STRENGTHS)
        return STRENGTHS[int(errors.argmin())]

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) hᵀW of the expanded features."""
        return self.expand(features) @ self.weights
