"""Memory Aware Synapses (MAS): weights that the outputs are sensitive to are kept, no labels needed.

Source: Aljundi et al. 2018, "Memory Aware Synapses: Learning what (not) to forget" (arXiv 1711.09601),
eq. 3 with the squared L2 norm of the outputs (section 4.1), eq. 4; section 4.2 for the local version:
Ω_i = (1/N) Σ_n |∂ ‖f(x_n)‖²₂ / ∂θ_i|; loss CE + λ Σ_i Ω_i (θ_i − θ*_i)², no ½; θ* are the parameters at
the end of the last task. The absolute value is taken per sample; Ω is summed over tasks.
`--mas_norm`: l2sq; l2, ‖f‖₂; l1, Σ_c |f_c|; vector, the mean over outputs c of |∂ f_c / ∂θ_i|.
`--mas_local` (l-MAS): Ω_ij = (1/N) Σ_n y_i y_j, the Hebbian product of what goes into a layer and what its
ReLU gives, and no backward pass (models/parts/hebbian.py says what that is for convolutions).
`--mas_merge`: sum; mean over tasks; decay, Ω ← α Ω + (1 − α) Ω_new from the second task on.
`--mas_consistent` weighs tasks by α_t with equal α_t Σ_ij Ω_t,ij and Σ_t α_t = λ, renewed with every task:
the penalty does not depend on the order of the Ω_t, and no task outweighs the others.
Differs from the authors' code: that takes the absolute value of a batch's summed gradient by default;
weight decay stays L2 (there L1). A head that all tasks share is protected like any layer
(`--protect_head 0`: not); per-task heads are not, as in the paper. Gradient steps on the penalty diverge
once lr · 2λ · max ΣΩ exceeds 2: a larger λ needs a smaller --lr.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets import unlabeled
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts import hebbian, importance
from engram.models.parts.inputs import require_images
from engram.models.parts.norms import NORMS
from engram.models.parts.quadratic import Quadratic
from engram.utils.buffers.reservoir import distinct
from engram.utils.config.options import OptionError, option


@dataclass(frozen=True)
class Options(importance.ProtectionOptions):
    """These are the flags of MAS."""

    mas_lambda: float = option(
        0.01, "strength λ of the penalty (the paper's, at small rates: 1); 0 turns it off", ge=0
    )
    mas_n: int = option(0, "images per task for the importance; 0: all", ge=0)
    mas_norm: str = option(
        "l2sq", "of the outputs, whose gradient is the importance", choices=("l2sq", "l2", "l1", "vector")
    )
    mas_local: bool = option(False, "l-MAS: Hebbian products of activations instead of gradients")
    mas_merge: str = option(
        "sum", "how tasks' importances are put together", choices=("sum", "mean", "decay")
    )
    mas_alpha: float = option(0.5, "decay: what is kept of the old importance", ge=0, le=1)
    mas_consistent: bool = option(False, "the same total importance for every task (with --mas_merge sum)")
    mas_data: str = option(
        "train", "images of the importance: train, test (without labels), or a folder of any images"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mas_consistent and self.mas_merge != "sum":
            raise OptionError(
                f"--mas_consistent weighs a sum of importances; leave out --mas_merge {self.mas_merge}"
            )
        if self.mas_local and self.mas_norm != "l2sq":
            raise OptionError(f"--mas_local takes no norm of outputs; leave out --mas_norm {self.mas_norm}")


class MAS(Method):
    """Cross-entropy plus a quadratic penalty whose importances grow at the end of each task."""

    options: Options
    needs_boundaries = True
    data_parallel = True
    eager_step = ""
    off_switch: ClassVar = {"mas_lambda": 0}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.quadratic = Quadratic(importance.shared_parameters(net, options.protect_head))
        self.totals: list[Tensor] = []  # Σ_ij Ω_t,ij of each task
        self.strength = torch.tensor(options.mas_lambda, device=self.device)
        if options.mas_data not in ("train", "test"):
            require_images(setup.benchmark, f"--mas_data {options.mas_data}")
            unlabeled.files(options.mas_data)  # a wrong folder is an error now, not after the first task

    def edit_gradients(self, batch: Batch) -> None:
        """Add 2 λ Ω (θ − θ*), the gradient of λ Σ Ω (θ − θ*)²; consistent: of Σ_t α_t Σ Ω_t (θ − θ*)²."""
        self.quadratic.add_gradients(self.strength)

    def end_task(self, task: Task) -> None:
        """Add the task's importance and move the anchor here."""
        if self.options.mas_lambda:
            self.consolidate(self.importance_of(self.images(task), task))

    def images(self, task: Task) -> Tensor:
        """(N, C, H, W) uint8 images that the importance is taken on, `--mas_n` of them."""
        benchmark, source, n = self.benchmark, self.options.mas_data, self.options.mas_n
        if source in ("train", "test"):
            samples = benchmark.test_of(task) if source == "test" else benchmark.train(task)
            return importance.subset(samples, n, self.draws).x_raw
        paths = unlabeled.files(source)
        if 0 < n < len(paths):
            paths = [paths[i] for i in distinct(len(paths), n, self.draws).tolist()]
        return unlabeled.read(paths, benchmark.stored_shape).to(self.device)

    def importance_of(self, images: Tensor, task: Task) -> dict[str, Tensor]:
        """Name → importance over any images (N, C, H, W) uint8, seen as images of `task`; no labels."""
        parameters = self.quadratic.parameters
        if self.options.mas_local:
            allowed = None if self.allowed_classes is None else self.allowed_classes[task.id]
            normalise = self.benchmark.augment.normalise
            return hebbian.of_images(self.net, normalise, parameters, images, task, allowed)
        quantities = NORMS[self.options.mas_norm]
        return importance.of_images(self.net, self.benchmark, parameters, images, task, quantities, 1)

    @torch.no_grad()
    def consolidate(self, omega: dict[str, Tensor]) -> None:
        """Merge a task's importance into that of the tasks before; the anchor is where the parameters are."""
        self.totals.append(sum(value.sum() for value in omega.values()))
        keep, take = self.shares(len(self.totals))
        old = self.quadratic.importance
        self.quadratic.set({n: keep * old[n] + take * new if old else take * new for n, new in omega.items()})
        if self.options.mas_consistent:  # what is kept is Σ_t Ω_t / S_t, and α_t = λ / S_t / Σ_s (1 / S_s)
            inverses = sum(map(inverse, self.totals))
            self.strength = self.options.mas_lambda / inverses.clamp_min(torch.finfo(inverses.dtype).tiny)

    def shares(self, n_tasks: int) -> tuple[float, float | Tensor]:
        """Factors of the old and of the new importance when the n-th task is merged."""
        if self.options.mas_consistent:
            return 1.0, inverse(self.totals[-1])
        if self.options.mas_merge == "mean":
            return (n_tasks - 1) / n_tasks, 1 / n_tasks
        if self.options.mas_merge == "decay" and n_tasks > 1:
            return self.options.mas_alpha, 1 - self.options.mas_alpha
        return 1.0, 1.0


def inverse(total: Tensor) -> Tensor:
    """1/S; 0 for a task of no importance, which then weighs nothing."""
    return torch.where(total > 0, 1 / total, 0)
