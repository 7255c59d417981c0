"""L2P: prompts from a pool, chosen by each image's query, beside the patches of a frozen ViT.

Source: Wang et al. 2022, "Learning to Prompt for Continual Learning" (arXiv 2112.08654), eq. 3-5; the code of
the authors is google-research/l2p (JAX). A pool has M prompts P_m ∈ R^{L×D} with keys k_m ∈ R^D; an image x:
    q(x) = class token of the frozen encoder without prompts
    S(x) = the N keys with the largest cos(q(x), k_m)
    z(x) = mean of the outputs at the N·L prompt tokens in [class token, P_S, patches]
    loss = CE(head(z(x)), y) − λ Σ_{m ∈ S(x)} cos(q(x), k_m), the CE over the classes of the task alone.
Two passes an image. `--load_best_args l2p_jax` and `l2p_pytorch` are the settings of the two public codes.
Control without prompts: `--model sgd --tune head --train_classes task`, which comes close in published runs.
Differs from the paper: no weights against prompts that are chosen often, which no public code has either.
Not repeated: a vote of the batch (`--batchwise_prompt` does it); positions for prompts, with those of the
patches resized, as in the first PyTorch port.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.vit import Prompts
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.prompted import PromptedMethod, SelectionOptions, by_vote, cosines, drawn
from engram.utils.config.options import OptionError, option


@dataclass(frozen=True)
class Options(SelectionOptions):
    """These are the flags of L2P."""

    pool_size: int = option(10, "M, the number of prompts in the pool", ge=1)
    prompt_length: int = option(5, "L, tokens of a prompt", ge=1)
    n_prompts: int = option(5, "N, the prompts that an image gets", ge=1)
    pull_lambda: float = option(0.5, "λ, how strongly chosen keys are pulled towards the queries", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_prompts > self.pool_size:
            raise OptionError(
                f"--n_prompts {self.n_prompts}: the pool has {self.pool_size}; give at most so many, or "
                "a larger --pool_size"
            )


class Pool(nn.Module):
    """M prompts (M, L, D) and their keys (M, D), drawn uniformly between two bounds."""

    def __init__(self, options: Options, width: int, draws: torch.Generator) -> None:
        super().__init__()
        shape = (options.pool_size, options.prompt_length, width)
        self.prompts = drawn(shape, options.prompt_init, draws)
        self.keys = drawn((options.pool_size, width), options.prompt_init, draws)


class L2P(PromptedMethod):
    """A pool of prompts; each image gets those whose keys are nearest to its query."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.net.prompts = Pool(options, self.net.width, setup.generator("prompts")).to(self.device)

    def capture(self, n_steps: int) -> str:
        """Say that nothing is compiled: compiled passes give the class token, and z(x) is made of others."""
        return "--compile: l2p reads the outputs at its prompts; its network runs as it is"

    @property
    def pool(self) -> Pool:
        """The pool, a module of the network."""
        return cast(Pool, self.net.prompts)

    def selected(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) queries → S(x), positions (N, n_prompts) in the pool, and their cosines to the queries."""
        similarity = cosines(query, self.pool.keys)
        choices = similarity.topk(self.options.n_prompts).indices
        if self.options.batchwise_prompt:
            choices = by_vote(choices, self.options.pool_size)
        return choices, similarity.gather(1, choices)

    def prompted_features(self, x: Tensor, choices: Tensor) -> Tensor:
        """(N, C, H, W), positions (N, n_prompts) → z(x), (N, D)."""
        prompts = self.pool.prompts[choices].flatten(1, 2)
        outputs = self.net.tokens(x, Prompts(prompts))
        return outputs[:, 1 : 1 + prompts.shape[1]].mean(1)

    def loss(self, batch: Batch) -> Tensor:
        """CE − λ Σ_{m ∈ S(x)} cos(q(x), k_m), the mean over the batch."""
        choices, similarity = self.selected(self.query(batch.x))
        logits = self.net.head(self.prompted_features(batch.x, choices), batch.task_id)
        return (
            F.cross_entropy(self.mask_classes(logits, batch.task_id), batch.y)
            - self.options.pull_lambda * similarity.sum(1).mean()
        )  # fmt: skip

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) logits with the prompts that each image calls for."""
        choices, _ = self.selected(self.query(x))
        return self.net.head(self.prompted_features(x, choices), task_id)
