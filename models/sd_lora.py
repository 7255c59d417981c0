"""SD-LoRA: directions of old tasks stay, how far to go along each is learned.

Source: Wu et al. 2025, "SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning" (ICLR
2025, arXiv 2501.13198) and the authors' code. In every block W_q and W_v become
    W + Σ_j<t α_j B_j A_j / (‖B_j‖ ‖A_j‖) + α_t B_t A_t,   Frobenius norms,
where all α, the pair (B_t, A_t) and the task's head learn; α_j is one number for all blocks and projections
and begins each task at .8. A_t is drawn, B_t is first zero. Local cross-entropy on one head per task; SGD.
Differs from the paper: its text names Adam and 30 epochs, the code and the preset here SGD and 20. The code
builds its network anew for each task, so that α begins at .8 again, which the text does not say. A pair that
has not learned at all, whose norm is 0, adds nothing (there it is not a number).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.petl import LoRA
from engram.datasets.benchmark import Task
from engram.models.method import Method, Setup
from engram.models.parts.alignment import one_head_per_task
from engram.models.parts.vision_transformer import SMALL_VIT, require_vit
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of SD-LoRA."""

    lora_rank: int = option(10, "r, rank of a task's update", ge=1)
    initial_magnitude: float = option(0.8, "α of every direction at the start of a task", gt=0)


class Directions(LoRA):
    """Σ_j α_j B_j A_j x over the tasks' pairs; the magnitudes α are shared with the other projections."""

    def __init__(self, width: int, rank: int, draws: torch.Generator, magnitudes: nn.ParameterList) -> None:
        super().__init__(width, rank, draws, len(magnitudes))
        self.magnitudes = magnitudes

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (T · rank, D) and B (D, T · rank), each task's B times its magnitude."""
        scaled = [alpha * up for alpha, up in zip(self.magnitudes, self.up, strict=True)]
        return torch.cat(list(self.down)), torch.cat(scaled, 1)

    @torch.no_grad()
    def normalise(self, pair: int) -> None:
        """Keep the direction of a pair alone: A ← A / ‖A‖, B ← B / ‖B‖."""
        for factor in (self.down[pair], self.up[pair]):
            factor /= factor.norm().clamp_min(torch.finfo(factor.dtype).tiny)


class SDLoRA(Method):
    """A new direction for each task, magnitudes for all of them."""

    options: Options
    scenarios = ("class-il", "task-il")
    needs_boundaries = True
    needs_vit = True
    train_classes = "task"
    eager_step = ""
    off_switch = "it has a head for each task and a frozen encoder"
    quick_flags: ClassVar = {**SMALL_VIT, "lora_rank": 2}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        vit = require_vit(net, "sd_lora")
        vit.freeze()
        alphas = (nn.Parameter(torch.tensor(options.initial_magnitude)) for _ in setup.benchmark.tasks)
        magnitudes, draws = nn.ParameterList(alphas).to(setup.device), setup.generator("lora")
        for block in vit.blocks:
            for name in "qv":
                directions = Directions(vit.width, options.lora_rank, draws, magnitudes)
                block.attn.lora[name] = directions.to(setup.device)
        vit.head = one_head_per_task(vit.head, vit.feature_dim, setup)
        super().__init__(vit, options, setup)

    def directions(self) -> Iterator[Directions]:
        """The additions to queries and values of all blocks."""
        for block in self.net.blocks:
            yield from block.attn.lora.values()

    def enter(self, task: Task) -> None:
        """The task's pair and head learn, and the magnitudes up to the task's."""
        super().enter(task)
        for directions in self.directions():
            directions.learn(task.id)
            for j, alpha in enumerate(directions.magnitudes):
                alpha.requires_grad_(j <= task.id)

    def begin_task(self, task: Task) -> None:
        """The last task's pair becomes a direction; all magnitudes begin anew."""
        for directions in self.directions():
            if task.id:
                directions.normalise(task.id - 1)
            with torch.no_grad():
                for alpha in directions.magnitudes:
                    alpha.fill_(self.options.initial_magnitude)
