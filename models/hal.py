"""Hindsight Anchor Learning (HAL): ER whose steps may not move the outputs on learned anchor images.

Source: Chaudhry et al. 2021, "Using Hindsight to Anchor Past Knowledge in Continual Learning" (arXiv
2002.08165), eqs. 3-7, and the authors' code. With g the gradient of ER's loss ℓ and θ̃ = θ − lr g, a step
descends ℓ(θ) + λ mean over anchors e and outputs of (f_θ(e) − f_θ̃(e))²; the derivative goes through g
(to hold θ̃ constant, as mammoth does, would pull f_θ towards f_θ̃). When a task ends, one anchor for each
of its classes climbs CE(f_θM(e), y) − CE(f_θ(e), y) − γ ‖φ(e) − φ_y‖², θM being θ after one epoch on the
memory and φ_y a running mean of the class's features. The memory is a ring with a part for every task.
Stored: uint8 images, and anchors as the network sees them.
Differs from the paper: as in the code, φ_y is of a class (there a sum, here a mean over the batch's
samples) and anchors start at mean images, here of the class's samples in memory, and stay within the range
of pixels; anchors are seen in eval mode. The paper sums over outputs; with their mean λ = 0.1 is DER's
(Buzzega et al. 2020), while a tenfold one flattens an MLP at rate 0.1 until it predicts nothing.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.inference import evaluating
from engram.models.rehearsal import ReplayOptions, TaskRingMethod
from engram.utils.config.options import option
from engram.utils.training import optimizers
from engram.utils.transfer import send


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of HAL."""

    hal_lambda: float = option(0.1, "weight λ of the anchors; 0: ER", ge=0)
    beta: float = option(0.5, "what a running mean of features keeps of itself per step", ge=0, le=1)
    gamma: float = option(0.1, "weight γ of the distance to the mean of features", ge=0)
    anchor_steps: int = option(100, "gradient steps on each anchor", ge=1)
    anchor_lr: float = option(0.1, "learning rate of the anchors", gt=0)


class HAL(TaskRingMethod):
    """ER with a second-order penalty on the anchors' outputs."""

    options: Options
    joins_replay = True
    off_switch: ClassVar = {"buffer_size": 0, "hal_lambda": 0}
    quick_flags: ClassVar = {"anchor_steps": 3}
    second_derivatives = True

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.anchors: dict[str, Tensor] = {}  # x, y, task_id
        self.mean_features = torch.zeros(setup.benchmark.n_classes, net.feature_dim, device=self.device)

    def begin_task(self, task: Task) -> None:
        """The means of features are the task's own."""
        self.mean_features.zero_()

    def loss(self, batch: Batch) -> Tensor:
        """ℓ(θ) + λ mean (f_θ(e) − f_θ̃(e))², ℓ being ER's loss and θ̃ where a step on it would lead."""
        x, y, task_id = self.with_replay(batch)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            loss = F.cross_entropy(self.logits(x, task_id), y)
        if not self.anchors:
            return loss
        return (
            loss
            + self.options.hal_lambda * self.change_on_anchors(loss).square().mean()
        )  # fmt: skip

    def change_on_anchors(self, loss: Tensor) -> Tensor:
        """(n, C) f_θ(e) − f_θ̃(e) with θ̃ = θ − lr ∇ℓ(θ), differentiable through the gradient."""
        parameters = self.trainable()
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
        lr = optimizers.learning_rate(self.optimizer)
        moved = {
            n: p if g is None else p - lr * g for (n, p), g in zip(parameters.items(), slopes, strict=True)
        }
        e, _, owner = self.anchors.values()
        with evaluating(self.net):
            change = self.net(e, owner) - functional_call(self.net, moved, (e, owner))
        return change if self.allowed_classes is None else change * self.allowed_classes[owner]

    def after_step(self, batch: Batch) -> None:
        """Renew the means of features; write the batch to the current task's ring."""
        if self.options.hal_lambda:
            with torch.no_grad(), evaluating(self.net):
                features = self.net.features(batch.x).flatten(1)
            update_means(self.mean_features, features, batch.y, self.options.beta)
        self.remember(batch)

    def end_task(self, task: Task) -> None:
        """Learn the anchors of the task's classes."""
        if not self.options.hal_lambda or not len(self.buffer):
            return
        y, stored = torch.tensor(task.classes, device=self.device), self.buffer.of(task.id)
        seen = self.benchmark.augment.normalise(stored["x"])
        members = (stored["y"] == y.unsqueeze(1)).to(seen.dtype)
        means = members @ seen.flatten(1) / members.sum(1, keepdim=True).clamp_min(1)
        owner = torch.full_like(y, task.id)
        e = self.climb(self.after_replay(), means.view(-1, *seen.shape[1:]), y, owner)
        new = {"x": e, "y": y, "task_id": owner}
        old = self.anchors or {name: field[:0] for name, field in new.items()}
        self.anchors = {name: torch.cat((old[name], field)) for name, field in new.items()}

    def after_replay(self) -> nn.Module:
        """θM: a copy of the network after one epoch of SGD on the memory."""
        tuned, train = copy.deepcopy(self.net), self.setup.train
        stored = self.buffer.stored()
        order = send(torch.randperm(len(self.buffer), generator=self.draws), self.device)
        parameters = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = optimizers.SGD(parameters, lr=train.lr)
        for rows in order.split(train.batch_size):
            x, y, task_id = self.augmented({name: field[rows] for name, field in stored.items()})
            optimizer.zero_grad()
            F.cross_entropy(self.mask_classes(tuned(x, task_id), task_id), y).backward()
            optimizer.step()
        return tuned.eval()

    def climb(self, tuned: nn.Module, e: Tensor, y: Tensor, owner: Tensor) -> Tensor:
        """Anchors (n, C, H, W) after the steps of gradient ascent from `e`; each has its own objective."""
        low, high = self.benchmark.augment.limits(e)
        with evaluating(self.net):
            for _ in range(self.options.anchor_steps):
                e.requires_grad_()
                (slope,) = torch.autograd.grad(self.hindsight(tuned, e, y, owner), e)
                e = torch.clamp(e.detach() + self.options.anchor_lr * slope, low, high)
        return e

    def hindsight(self, tuned: nn.Module, e: Tensor, y: Tensor, owner: Tensor) -> Tensor:
        """Scalar sum over anchors: what θM has forgotten of them, less γ times how far they are out."""
        features = self.net.features(e)
        logits = torch.cat((tuned(e, owner), self.net.head(features, owner)))
        losses = F.cross_entropy(self.mask_classes(logits, owner.repeat(2)), y.repeat(2), reduction="none")
        after, before = losses.chunk(2)
        far = (features.flatten(1) - self.mean_features[y]).square().sum()
        return after.sum() - before.sum() - self.options.gamma * far


def update_means(means: Tensor, features: Tensor, y: Tensor, keep: float) -> None:
    """μ_c ← keep μ_c + (1 − keep) mean of the features (N, D) of class c, where there are any; in place."""
    members = F.one_hot(y, len(means)).to(features.dtype)
    counts = members.sum(0).unsqueeze(1)
    new = members.T @ features / counts.clamp_min(1)
    means.copy_(torch.where(counts > 0, keep * means + (1 - keep) * new, means))
