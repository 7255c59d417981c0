"""Elastic Weight Consolidation (EWC), online or separate: a Fisher-weighted pull to old solutions.

Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks" (arXiv
1612.00796), eq. 3 (separate); Schwarz et al. 2018, "Progress & Compress" (arXiv 1805.06370),
section 3 (online): F̃ ← γ F̃ + F, one anchor, and γ F̃ in the loss.
The loss is CE + (λ/2) Σ_i F_i (θ_i − θ*_i)², summed over past tasks in the separate form. F is the
diagonal Fisher information per sample, averaged over samples; exact by default (`--fisher`, see
models/parts/fisher.py). No other normalisation.
Differs from the papers: the sum over separate tasks is kept as one quadratic (equal, memory does not
grow with tasks); at most `--fisher_n` samples of each task are used. A head that all tasks share is
protected like any layer (`--protect_head 0`: not); per-task heads are not. Gradient steps on the penalty
diverge once lr · λ · max ΣF exceeds 2: a larger λ needs a smaller --lr.
`--ewc_variant mer` is the baseline of the GEM and MER papers' official code: F is the square of the
gradient of the mean loss over the first `--n_memories` samples that the task presented, with their
labels (one backward pass, so no Fisher of single samples); the penalty is λ Σ_t Σ_i F_ti (θ_i − θ*_ti)²,
without ½. Differs from that code: of a first batch larger than --n_memories the rest is dropped.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Samples, Task
from engram.models.method import Method, Setup
from engram.models.parts import fisher
from engram.models.parts.importance import ProtectionOptions, shared_parameters
from engram.models.parts.quadratic import Quadratic
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ProtectionOptions):
    """These are the flags of EWC."""

    e_lambda: float = option(3.0, "strength λ of the penalty; 0 turns it off", ge=0)
    ewc_mode: str = option(
        "online", "one running Fisher and anchor, or one per past task", choices=("online", "separate")
    )
    gamma: float = option(
        1.0, "online: what is kept of the old Fisher at each new task, and a factor of the whole penalty "
        "(Schwarz et al. 2018): 0 turns it off", ge=0, le=1,
    )  # fmt: skip
    fisher: str = option("all", "labels of the Fisher: all is exact", choices=fisher.KINDS)
    fisher_n: int = option(1000, "training samples per task for the Fisher; 0: all", ge=0)
    ewc_variant: str = option(
        "standard", "mer: the baseline of the MER and GEM papers (without ½)", choices=("standard", "mer")
    )
    n_memories: int = option(10, "mer: a task's first samples, of which the Fisher is made", ge=1)


class EWC(Method):
    """Cross-entropy plus a quadratic penalty that is renewed at the end of each task."""

    options: Options
    needs_boundaries = True
    data_parallel = True
    eager_step = ""
    off_switch: ClassVar = {"e_lambda": 0}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.quadratic = Quadratic(shared_parameters(net, options.protect_head))
        self.first: dict[str, Tensor] = {}  # mer: the task's first samples

    def begin_task(self, task: Task) -> None:
        """The samples that are kept are the task's own."""
        self.first = {}

    @property
    def strength(self) -> float:
        """Factor of Σ F (θ − θ*)² in the loss: λ/2, online γ λ/2; λ in MER's form."""
        options = self.options
        if options.ewc_variant == "mer":
            return options.e_lambda
        return 0.5 * options.e_lambda * (options.gamma if options.ewc_mode == "online" else 1.0)

    def edit_gradients(self, batch: Batch) -> None:
        """Add λ F (θ − θ*), the gradient of (λ/2) Σ F (θ − θ*)²; in MER's form, without ½, twice that."""
        self.quadratic.add_gradients(self.strength)

    def after_step(self, batch: Batch) -> None:
        """MER's form: keep the task's first samples."""
        if self.options.ewc_variant != "mer" or self.epoch > 0:
            return
        missing = self.options.n_memories - (len(self.first["y"]) if self.first else 0)
        if missing > 0:
            new = {name: getattr(batch, name)[:missing] for name in Samples._fields}
            self.first = {
                n: torch.cat((self.first[n], f)) if self.first else f.clone() for n, f in new.items()
            }

    def step_form(self) -> Hashable:
        """MER's form: the first epoch counts samples on the host."""
        return None if self.options.ewc_variant == "mer" and self.epoch == 0 else ()

    def end_task(self, task: Task) -> None:
        """Add the task's Fisher information; the anchor moves here."""
        options, parameters = self.options, self.quadratic.parameters
        if not self.strength:
            return
        if options.ewc_variant == "mer":
            first = Samples(**self.first)
            new = fisher.batched(self.net, self.benchmark, parameters, first, len(first.y), task)
            self.quadratic.add(new)
            return
        new = fisher.of_task(
            self.net, self.benchmark, parameters, task, options.fisher_n, self.draws, options.fisher,
            self.setup.train.batch_size,
        )  # fmt: skip
        if options.ewc_mode == "separate":
            self.quadratic.add(new)
        else:
            old = self.quadratic.importance
            self.quadratic.set({n: F + options.gamma * old[n] if old else F for n, F in new.items()})
