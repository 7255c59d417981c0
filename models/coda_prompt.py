"""CODA-Prompt: prefixes that are sums of components, weighed by attention of each image's query.

Source: Smith et al. 2023, "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free
Continual Learning" (arXiv 2211.13218) and the authors' code, GT-RIPL/CODA-Prompt. Blocks of `--coda_layers`
have M components P_m ∈ R^{L×D}, with keys K_m and attention vectors A_m ∈ R^D; q(x) is the class token of the
frozen encoder without prompts (two passes an image):
    α_m = cos(q(x) ⊙ A_m, K_m)
    p = Σ_m α_m P_m, its first half keys and its second half values before the block's own
    loss = CE(head(f(x; p)), y) + λ Σ_{X = K, A, P} mean((XXᵀ − I)²), the CE over the task's classes alone.
Of T tasks each adds and trains M/T components, earlier ones are frozen. The new K, A and P (each component
flattened) start orthonormal and orthogonal to all earlier ones: Gram-Schmidt, here a QR decomposition.
λ is 0 by default, as in the code since components start like this. Its first release multiplied the λ of 0.1
that readers quote from the paper by 1e-6, which they miss there: 1e-7 of this mean; a whole 0.1 lowers the
accuracy (GT-RIPL/CODA-Prompt, commits 22948d2 and 605ac87, issues 4 and 12). Its settings are
`--load_best_args coda_cifar` and `coda_inr`, where the rate falls along `--lr_scheduler cosine_quarter`.
Differs from the paper: M need not be a multiple of T.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.backbones.vit import Prompts
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.components import Components
from engram.models.parts.prompted import PromptedMethod
from engram.utils.config.options import OptionError, OptionSet, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of CODA-Prompt."""

    coda_components: int = option(100, "M, components of a block, shared by all tasks", ge=1)
    coda_length: int = option(8, "L, keys and values of a prefix together", ge=2)
    coda_layers: tuple[int, ...] = option((0, 1, 2, 3, 4), "blocks with a prompt, counted from 0", ge=0)
    ortho_lambda: float = option(
        0.0, "λ, strength of the penalty for components at an angle (the first release: 1e-7)", ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coda_length % 2:
            raise OptionError(f"--coda_length {self.coda_length}: must be even, half keys and half values")


def alpha(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """(N, D), (B, m, D), (B, m, D) → (N, B, m), cos(q ⊙ A, K) by two products of matrices."""
    along = torch.einsum("nd,bmd->nbm", query, attention * F.normalize(keys, dim=-1))
    squared_length = torch.einsum("nd,bmd->nbm", query.square(), attention.square())
    return along * squared_length.clamp_min(1e-24).rsqrt()


def deviation(x: Tensor) -> Tensor:
    """Scalar Σ over blocks of mean((XXᵀ − I)²), of (B, m, ...) with each component flattened."""
    gram = x.flatten(2) @ x.flatten(2).mT
    return (gram - torch.eye(x.shape[1], device=x.device)).square().mean((1, 2)).sum()


class CODAPrompt(PromptedMethod):
    """Components of every task, of which the current task's learn."""

    options: Options
    quick_flags = PromptedMethod.quick_flags | {"coda_layers": "0,1", "coda_components": 6}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.refuse_layers(coda_layers=options.coda_layers)
        m, n_tasks, width = options.coda_components, len(self.benchmark.tasks), self.net.width
        if not n_tasks <= m <= width:
            raise UserError(
                f"--coda_components {m}: give a number from {n_tasks} (one a task) to {width} (the network's "
                "width: so many can be at right angles)"
            )
        sizes = [(t + 1) * m // n_tasks - t * m // n_tasks for t in range(n_tasks)]
        components = Components(sizes, len(options.coda_layers), options.coda_length, width)
        self.net.prompts = components.to(self.device)
        self.draws, self.n_seen = setup.generator("components"), 1  # tasks, the current one among them

    @property
    def components(self) -> Components:
        """The components of all tasks, a module of the network."""
        return cast(Components, self.net.prompts)

    def enter(self, task: Task) -> None:
        """Components of other tasks rest."""
        super().enter(task)
        self.components.learn(task.id)

    def begin_task(self, task: Task) -> None:
        """Draw the task's components, which are zero until now."""
        self.n_seen = task.id + 1
        self.components.begin(task.id, self.draws)

    def prompts(self, query: Tensor) -> Prompts:
        """(N, D) queries → p = Σ_m α_m P_m of each block, keys and values (N, L/2, D)."""
        keys, attention, components = self.components.of_first(self.n_seen)
        p = torch.einsum("nbm,bmld->nbld", alpha(query, attention, keys), components)
        halves = zip(*(half.unbind(1) for half in p.chunk(2, dim=2)), strict=True)
        return Prompts(prefixes=dict(zip(self.options.coda_layers, halves, strict=True)))

    def prompted(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C) logits of head(f(x; p))."""
        return self.net.head(self.net.features(x, self.prompts(self.query(x))), task_id)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over the classes of the task."""
        logits = self.prompted(batch.x, batch.task_id)
        return F.cross_entropy(self.mask_classes(logits, batch.task_id), batch.y)

    def penalty(self) -> Tensor | None:
        """λ Σ_{X = K, A, P} mean((XXᵀ − I)²) over all components so far."""
        if not self.options.ortho_lambda:
            return None
        return self.options.ortho_lambda * sum(map(deviation, self.components.of_first(self.n_seen)))

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) logits with the components of the tasks seen."""
        return self.prompted(x, task_id)
