"""Riemannian Walk (RWalk): a running Fisher information plus how much each weight's path mattered.

Source: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning" (arXiv 1801.10112), sections
4.1-4.3: a running Fisher F ← α F_new + (1 − α) F; scores s += max(0, −Σ g Δθ) / (½ F Δθ² + ε) over every
Δt steps, averaged with the old ones at the end of a task (first task: as they are); loss
CE + λ Σ_i (F_i + s_i) (θ_i − θ*_i)², no ½, F and s each scaled to [0, 1] over the whole network, as in
the authors' code (facebookresearch/agem), so that λ is the pull on the most important weight. θ* are
the parameters at the end of the last task.
F_new is the mean over Δt steps of the squared gradient of the batch's mean loss.
Differs from that code: F_new (there the sum since the task began, over Δt: it is reset by tasks alone); ½ in
the score as in the paper; scores are averaged as in the paper (there the old score counts 1½ times); the
first Δt steps use their own F; a last, shorter stretch of a task counts. The penalty's gradient is not part
of g. Heads as `--protect_head` says; per-task heads are never protected.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts.importance import ProtectionOptions, shared_parameters
from engram.models.parts.path import PathIntegral
from engram.models.parts.quadratic import Quadratic
from engram.utils.compat import foreach_addcmul_
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ProtectionOptions):
    """These are the flags of RWalk."""

    rwalk_lambda: float = option(1.0, "strength λ of the penalty; 0 turns it off", ge=0)
    rwalk_alpha: float = option(0.9, "share α of the new in the running Fisher", gt=0, le=1)
    rwalk_every: int = option(10, "steps Δt between updates of Fisher and scores", ge=1)
    rwalk_epsilon: float = option(0.001, "damping ε of the scores", gt=0)


class RWalk(Method):
    """Cross-entropy plus a quadratic penalty weighted by Fisher information and path scores."""

    options: Options
    needs_boundaries = True
    off_switch: ClassVar = {"rwalk_lambda": 0}
    eager_step = "the host counts the steps of a stretch"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.quadratic = Quadratic(shared_parameters(net, options.protect_head))
        self.path = PathIntegral(self.quadratic.parameters)
        self.squares = self._zeros()  # Σ g² over the steps of this stretch
        self.n_steps = 0
        self.start: dict[str, Tensor] = {}  # parameters where this stretch began
        self.fisher: dict[str, Tensor] = {}
        self.scores = self._zeros()  # of the current task
        self.kept: dict[str, Tensor] = {}  # of the tasks before

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in self.quadratic.parameters.items()}

    def begin_task(self, task: Task) -> None:
        """The first stretch of the task begins here."""
        self.start = self._positions()
        self.scores = self._zeros()

    def _positions(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.quadratic.parameters.items()}

    @torch.no_grad()
    def edit_gradients(self, batch: Batch) -> None:
        """Add the penalty's gradient, once the task's own has been noted."""
        if not self.options.rwalk_lambda:
            return
        self.path.note()
        names = [n for n, p in self.quadratic.parameters.items() if p.grad is not None]
        gradients = [self.quadratic.parameters[n].grad for n in names]
        foreach_addcmul_([self.squares[n] for n in names], gradients, gradients)
        self.quadratic.add_gradients(self.options.rwalk_lambda, fused=True)

    def after_step(self, batch: Batch) -> None:
        """Lengthen the path; after Δt steps update scores and Fisher."""
        if not self.options.rwalk_lambda:
            return
        self.path.add()
        self.n_steps += 1
        if self.n_steps == self.options.rwalk_every:
            self._end_stretch()

    @torch.no_grad()
    def _end_stretch(self) -> None:
        alpha, epsilon = self.options.rwalk_alpha, self.options.rwalk_epsilon
        new = {name: total / self.n_steps for name, total in self.squares.items()}
        fisher = self.fisher or new
        for name, p in self.quadratic.parameters.items():
            distance = 0.5 * fisher[name] * (p - self.start[name]).square()
            self.scores[name] += self.path.value[name].clamp_min(0) / (distance + epsilon)
        self.fisher = {name: alpha * new[name] + (1 - alpha) * fisher[name] for name in new}
        self.start, self.squares, self.n_steps = self._positions(), self._zeros(), 0
        self.path.reset()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Average the scores with those of the tasks before; the anchor moves here."""
        if not self.options.rwalk_lambda:
            return
        if self.n_steps:
            self._end_stretch()
        old = self.kept or self.scores
        self.kept = {name: (old[name] + score) / 2 for name, score in self.scores.items()}
        fisher, scores = scaled(self.fisher), scaled(self.kept)
        self.quadratic.set({name: fisher[name] + scores[name] for name in fisher})


def scaled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values over the largest of all of them."""
    top = torch.stack([value.max() for value in values.values()]).max()
    return {name: value / top.clamp_min(torch.finfo(top.dtype).tiny) for name, value in values.items()}
