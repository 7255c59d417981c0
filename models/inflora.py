"""InfLoRA: low-rank updates of keys and values in directions that old tasks do not use.

Source: Liang & Li 2024, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning" (CVPR, arXiv
2404.00228) and the authors' code. In each block W_k and W_v become W + Σ_j≤t B_j A_j. Before task t, the sum
X = Σ x xᵀ over the tokens x that enter the block's attention gives A_t, which then rests: M being a basis of
what old tasks use, A_t = U_rᵀ / √3, U_r the r first left singular vectors of (I − M Mᵀ) X. B_t, first zero,
and the task's head learn, so W_k x and W_v x of an old token x in the span of M stay as they are. After the
task M is extended (DualGPM) by the fewest left singular vectors of (I − M Mᵀ) X, X taken anew, with which it
holds the share ε_t = ε + (1 − ε) t / T of ‖X‖². Local cross-entropy on one head per task.
Differs from the authors' code: X is of the task's un-augmented images (there augmented), in float64 on a CPU
and in float32 elsewhere, decomposed in float64. I − M Mᵀ is kept, as large as M or its complement may become.
The first M has the share ε, too (there one direction fewer). Rows of A_t for directions in which new inputs
have nothing free are 0 (there rounding errors of length 1/√3, which may interfere).
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.petl import LoRA, attach_lora
from engram.datasets.benchmark import Task
from engram.models.method import Method, Setup
from engram.models.parts.alignment import one_head_per_task
from engram.models.parts.frozen import SUMS
from engram.models.parts.vision_transformer import SMALL_VIT, require_vit
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

NOTHING = 1e-8  # times the largest singular value of X: what is below it is rounding


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of InfLoRA."""

    lora_rank: int = option(10, "r, rank of a task's update", ge=1)
    dualgpm_epsilon: float = option(
        0.95, "ε, the share of inputs' energy that is kept free of interference after the first task; 1 "
        "freezes all directions that a task has (the paper on ImageNet-R: 0.98)", gt=0, le=1,
    )  # fmt: skip


class InfLoRA(Method):
    """Designed A, learned B, and the memory of used directions."""

    options: Options
    scenarios = ("class-il", "task-il")
    needs_boundaries = True
    needs_vit = True
    train_classes = "task"
    eager_step = ""
    off_switch = "it has a head for each task and a frozen encoder"
    quick_flags: ClassVar = {**SMALL_VIT, "lora_rank": 2}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        vit = require_vit(net, "inflora")
        if options.lora_rank > vit.width:
            raise UserError(f"--lora_rank {options.lora_rank}: give at most the encoder's width, {vit.width}")
        vit.freeze()
        n_tasks = len(setup.benchmark.tasks)
        attach_lora(vit, options.lora_rank, setup.generator("lora"), targets="kv", n_pairs=n_tasks)
        vit.head = one_head_per_task(vit.head, vit.feature_dim, setup)
        super().__init__(vit, options, setup)
        identity = torch.eye(vit.width, dtype=torch.float64, device=self.device)
        self.free = identity.repeat(vit.depth, 1, 1)  # (blocks, D, D): I − M Mᵀ

    def loras(self) -> list[tuple[LoRA, LoRA]]:
        """The additions to keys and values, by block."""
        return [(block.attn.lora["k"], block.attn.lora["v"]) for block in self.net.blocks]

    def enter(self, task: Task) -> None:
        """B_t and the task's head learn, nothing else."""
        super().enter(task)
        for lora in (lora for pair in self.loras() for lora in pair):
            lora.learn(task.id, down=False)

    def begin_task(self, task: Task) -> None:
        """A_t = U_rᵀ / √3 of (I − M Mᵀ) X, for keys and values alike."""
        X = self.input_moments(task)
        U, S, _ = torch.linalg.svd(self.free @ X)
        has_inputs = S > NOTHING * torch.linalg.matrix_norm(X, 2).unsqueeze(1)
        rows = (U * has_inputs.unsqueeze(1))[:, :, : self.options.lora_rank].mT / 3**0.5
        with torch.no_grad():
            for pair, A in zip(self.loras(), rows, strict=True):
                for lora in pair:
                    lora.down[task.id].copy_(A)

    def end_task(self, task: Task) -> None:
        """Extend M by the fewest directions u with which it holds the share ε_t of the energy ‖X‖²."""
        epsilon, n_tasks = self.options.dualgpm_epsilon, len(self.benchmark.tasks)
        share = epsilon + (1 - epsilon) * task.id / n_tasks
        X = self.input_moments(task)
        U, S, _ = torch.linalg.svd(self.free @ X)
        left = S.square().flip(1).cumsum(1).flip(1)  # k: the energy outside M and the first k directions
        total = X.square().sum((1, 2)).unsqueeze(1)
        taken = (left > (1 - share) * total) & (left > NOTHING**2 * total)
        new = U * taken.unsqueeze(1)
        self.free -= new @ new.mT

    def input_moments(self, task: Task) -> Tensor:
        """(blocks, D, D) X = Σ x xᵀ over the tokens of the task's images that enter each attention."""
        dtype = SUMS.get(self.device.type, torch.float32)
        moments = torch.zeros(self.free.shape, dtype=dtype, device=self.device)

        def add(sums: Tensor, attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0].flatten(0, 1).to(dtype)
            sums.addmm_(tokens.T, tokens)

        blocks = zip(self.net.blocks, moments, strict=True)
        hooks = [block.attn.register_forward_pre_hook(partial(add, sums)) for block, sums in blocks]
        try:
            self.features(self.benchmark.train(task).x_raw)
        finally:
            for hook in hooks:
                hook.remove()
        return moments.double()
