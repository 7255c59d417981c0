"""DualPrompt: prefixes that all tasks share in the first blocks, prefixes of each task in later ones.

Source: Wang et al. 2022, "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning" (arXiv
2204.04799); the code of the authors is google-research/l2p (JAX). Attention of a block with a prompt
p = (p_K, p_V), L tokens each, is softmax(q [p_K; k]ᵀ / √d) [p_V; v]; its queries stay as they are. Blocks of
`--g_layers` have a G-prompt g, those of `--e_layers` an E-prompt e_t for each task t; a task has one key k_t.
q(x) is the class token of the frozen encoder without prompts (two passes an image):
    training on task t    loss = CE(head(f(x; g, e_t)), y) − λ cos(q(x), k_t), the CE over the task's classes
    prediction            m = argmax_{m ≤ t} cos(q(x), k_m), then head(f(x; g, e_m))
e_t starts as a copy of e_{t−1}. `--load_best_args` has the settings of the authors' code.
Differs from the paper: keys of tasks that are still to come are no candidates.
Not repeated: prompts gathered as (layers, 2, N, ...) and reshaped, where they must be permuted, to (layers,
N, 2, ...): images got their neighbours' prompts, keys for values; a vote of the batch (`--batchwise_prompt`).
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.vit import Prompts
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.prompted import PromptedMethod, SelectionOptions, by_vote, cosines, drawn
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(SelectionOptions):
    """These are the flags of DualPrompt."""

    g_layers: tuple[int, ...] = option(
        (0, 1), "blocks with a prompt that all tasks share, counted from 0", ge=0
    )
    e_layers: tuple[int, ...] = option((2, 3, 4), "blocks with a prompt of each task", ge=0)
    g_length: int = option(5, "tokens of a shared prompt, as many keys as values", ge=1)
    e_length: int = option(5, "tokens of a task's prompt, as many keys as values", ge=1)
    pull_lambda: float = option(1.0, "λ, how strongly a task's key is pulled towards its queries", ge=0)


class DualPrompts(nn.Module):
    """g (blocks, 2, L, D), and for each task e_t (blocks, 2, L, D) and k_t (D,), drawn uniformly."""

    def __init__(self, options: Options, n_tasks: int, width: int, draws: torch.Generator) -> None:
        super().__init__()
        self.g_layers, self.e_layers, init = options.g_layers, options.e_layers, options.prompt_init
        e_shape = (len(self.e_layers), 2, options.e_length, width)
        self.g = drawn((len(self.g_layers), 2, options.g_length, width), init, draws)
        self.e = nn.ParameterList(drawn(e_shape, init, draws) for _ in range(n_tasks))
        self.keys = nn.ParameterList(drawn((width,), init, draws) for _ in range(n_tasks))

    def forward(self, choices: Tensor) -> Prompts:
        """(N,) tasks, one for each sample → block → its keys and values, each (N, L, D)."""
        shared = self.g.expand(len(choices), *self.g.shape)
        of_task = torch.stack(list(self.e))[choices]  # (N, blocks, 2, L, D): each sample's own, in its order
        prefixes = {layer: (shared[:, i, 0], shared[:, i, 1]) for i, layer in enumerate(self.g_layers)}
        prefixes |= {layer: (of_task[:, i, 0], of_task[:, i, 1]) for i, layer in enumerate(self.e_layers)}
        return Prompts(prefixes=prefixes)


class DualPrompt(PromptedMethod):
    """Shared and task-specific prefixes; a test image gets those of the task whose key is nearest."""

    options: Options
    quick_flags = PromptedMethod.quick_flags | {"g_layers": "0", "e_layers": "1"}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.refuse_layers(g_layers=options.g_layers, e_layers=options.e_layers)
        n_tasks, draws = len(self.benchmark.tasks), setup.generator("prompts")
        self.net.prompts = DualPrompts(options, n_tasks, self.net.width, draws).to(self.device)
        self.n_seen = 1  # tasks, the current one among them

    @property
    def prompts(self) -> DualPrompts:
        """All prompts and keys, a module of the network."""
        return cast(DualPrompts, self.net.prompts)

    def enter(self, task: Task) -> None:
        """Prompts and keys of other tasks rest."""
        super().enter(task)
        for j, parameters in enumerate(zip(self.prompts.e, self.prompts.keys, strict=True)):
            for parameter in parameters:
                parameter.requires_grad_(j == task.id)

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        """Let the task's prompt start as the last one's, e_t ← e_{t−1}."""
        self.n_seen = task.id + 1
        if task.id:
            self.prompts.e[task.id].copy_(self.prompts.e[task.id - 1])

    def similarity(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, T), cos(q(x), k_m) of every task."""
        return cosines(self.query(x), torch.stack(list(self.prompts.keys)))

    def logits_with(self, x: Tensor, choices: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) logits of head(f(x; g, e_m)), m = choices (N,)."""
        return self.net.head(self.net.features(x, self.prompts(choices)), task_id)

    def loss(self, batch: Batch) -> Tensor:
        """CE − λ cos(q(x), k_t), the mean over the batch."""
        own_key = self.similarity(batch.x).gather(1, batch.task_id[:, None])
        logits = self.logits_with(batch.x, batch.task_id, batch.task_id)
        return (
            F.cross_entropy(self.mask_classes(logits, batch.task_id), batch.y)
            - self.options.pull_lambda * own_key.mean()
        )  # fmt: skip

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) logits with the prompts of the task that each image is nearest to, of those seen."""
        choices = self.similarity(x)[:, : self.n_seen].argmax(1, keepdim=True)
        if self.options.batchwise_prompt:
            choices = by_vote(choices, self.n_seen)
        return self.logits_with(x, choices[:, 0], task_id)
