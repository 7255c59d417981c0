"""Synaptic Intelligence (SI): weights whose moves lowered the loss in past tasks are kept in place.

Source: Zenke et al. 2017, "Continual Learning Through Synaptic Intelligence" (arXiv 1703.04200),
eq. 3 (path integral ω_i = −Σ g_i Δθ_i along a task), eq. 5 (Ω_i += ω_i / (Δ_i² + ξ), Δ_i the way from the
task's start to its end), eq. 4: loss CE + c Σ_i Ω_i (θ_i − θ*_i)², no ½; θ* are the parameters at the
end of the last task. ω has the unit of the mean loss of a batch; no other normalisation.
Differs from the paper: a task's ω below zero counts as zero, so that no weight is pushed away from θ*.
As there, g is the gradient of the task's loss alone: the penalty's is added afterwards, in closed form.
A head that all tasks share is protected like any layer (`--protect_head 0`: not); per-task heads are not.
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
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ProtectionOptions):
    """These are the flags of SI."""

    si_c: float = option(0.1, "strength c of the penalty; 0 turns it off", ge=0)
    si_xi: float = option(0.1, "damping ξ, for weights that hardly moved", gt=0)


class SI(Method):
    """Cross-entropy plus a quadratic penalty whose importances are gathered while training."""

    options: Options
    needs_boundaries = True
    eager_step = ""
    off_switch: ClassVar = {"si_c": 0}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.quadratic = Quadratic(shared_parameters(net, options.protect_head))
        self.path = PathIntegral(self.quadratic.parameters)
        self.start: dict[str, Tensor] = {}  # parameters where the task began

    def begin_task(self, task: Task) -> None:
        """A new path begins here."""
        self.path.reset()
        self.start = {name: p.detach().clone() for name, p in self.quadratic.parameters.items()}

    def edit_gradients(self, batch: Batch) -> None:
        """Add the penalty's gradient 2 c Ω (θ − θ*), once the task's own has been noted."""
        if self.options.si_c:
            self.path.note()
            self.quadratic.add_gradients(self.options.si_c, fused=True)

    def after_step(self, batch: Batch) -> None:
        """Lengthen the path integral by this step."""
        if self.options.si_c:
            self.path.add()

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Ω += ω / (Δ² + ξ); the anchor moves here."""
        if not self.options.si_c:
            return
        omega, old = {}, self.quadratic.importance
        for name, p in self.quadratic.parameters.items():
            way = (p - self.start[name]).square() + self.options.si_xi
            omega[name] = self.path.value[name].clamp_min(0) / way + (old[name] if old else 0)
        self.quadratic.set(omega)
