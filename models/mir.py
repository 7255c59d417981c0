"""Maximally Interfered Retrieval (ER-MIR): replay the samples that the coming step would hurt most.

Source: Aljundi et al. 2019, "Online Continual Learning with Maximally Interfered Retrieval" (arXiv
1908.04742), Algorithm 1, official code `mir_replay`. Of --subsample candidates from the memory those k are
replayed whose loss would rise most in a plain step on the stream's batch alone: with g its gradient,
s(x, y) = CE(θ − lr · g; x, y) − CE(θ; x, y). The step then takes the gradient of CE(stream) + CE(replay). The
memory, a reservoir, holds raw images; candidates are augmented once and trained on in that view.
Differs from the code: candidates may be of the current task, so no task boundary is needed (there they
come from past tasks only, where these are known); with several epochs a sample is offered to the memory
once; batch-norm statistics do not move while candidates are judged. The loss shown is the stream's.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.inner_steps import Logits
from engram.models.rehearsal import Examples, RehearsalMethod, ReplayOptions
from engram.utils.config.options import option
from engram.utils.errors import UserError
from engram.utils.training.optimizers import learning_rate

CANDIDATES = 5  # for each sample replayed: the paper's 50 for 10


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of MIR."""

    subsample: int = option(
        0, "candidates drawn from the memory at each step; 0: five times as many as are replayed", ge=0
    )


class MIR(RehearsalMethod):
    """The stream's gradient, plus that of what it interferes with."""

    options: Options
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        k = self.n_replayed
        self.n_candidates = options.subsample or CANDIDATES * k
        if self.n_candidates <= k:
            raise UserError(
                f"--subsample {options.subsample}: {k} of the candidates are replayed at each step, so there "
                f"is nothing to choose; give more than {k}, or lower --minibatch_size"
            )

    def edit_gradients(self, batch: Batch) -> None:
        """Add the gradient of CE(replay), the replayed samples being those of most interference."""
        candidates = self.replay(self.n_candidates)
        if candidates is None:
            return
        k = min(self.n_replayed, len(candidates.y))
        worst = self.interference(candidates).topk(k).indices
        x, y, task_id = (field[worst] for field in candidates)
        F.cross_entropy(self.logits(x, task_id), y).backward()

    @torch.no_grad()
    def interference(self, samples: Examples) -> Tensor:
        """(n,) how much each sample's loss rises in a virtual step along the gradient at hand."""
        network, lr = Logits(self.net, self.logits), learning_rate(self.optimizer)
        learning = {name: p for name, p in self.trainable().items() if p.grad is not None}
        virtual = {f"net.{name}": p - lr * p.grad for name, p in learning.items()}
        losses = []
        for parameters in ({}, virtual):
            statistics = {f"net.{name}": b.clone() for name, b in self.net.named_buffers()}
            logits = functional_call(network, parameters | statistics, (samples.x, samples.task_id))
            losses.append(F.cross_entropy(logits, samples.y, reduction="none"))
        return losses[1] - losses[0]

    def step_form(self) -> Hashable:
        """Whether samples are stored, and how many candidates there are."""
        return self.epoch == 0, min(len(self.buffer), self.n_candidates)

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the reservoir."""
        self.remember(batch)
