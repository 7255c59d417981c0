"""The base of methods that learn prompts for a transformer which stays as it was pre-trained.

A pass of an image takes two of the network: one without prompts, whose class token is the query q(x) (no
gradient), and one with the prompts that the query calls for. Prompts, keys and head are all that learns. The
prompts are a module of the network, `net.prompts`, so they are saved and resumed with it by name.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.vit import HookedViT
from engram.datasets.benchmark import Batch
from engram.models.method import Method, Setup
from engram.models.parts.vision_transformer import SMALL_VIT, require_vit
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

INITS = {"positive": (0.0, 0.01), "wide": (-1.0, 1.0)}  # bounds of uniform draws
VOTED = (
    "WARNING: --batchwise_prompt: all images of a batch get the prompts that most of them call for, in tests "
    "too; accuracies then depend on the order of the test images and leak their task (not comparable)"
)


@dataclass(frozen=True)
class SelectionOptions(OptionSet):
    """Flags of methods that choose prompts by their keys."""

    prompt_init: str = option(
        "positive", "first values of prompts and keys: uniform in [0, 0.01] (the authors' JAX code) or wide, "
        "in [-1, 1] (the PyTorch ports)", choices=tuple(INITS),
    )  # fmt: skip
    grad_clip: float = option(1.0, "largest norm of all gradients together; 0: they stay as they are", ge=0)
    batchwise_prompt: bool = option(
        False, "one choice of prompts for a whole batch, by majority, as released codes do: it leaks the "
        "task of the test images",
    )  # fmt: skip


class PromptedMethod(Method):
    """Frozen encoder, query, and prompts in `net.prompts`; a subclass says which ones a query calls for."""

    net: HookedViT
    scenarios = ("class-il", "domain-il")
    needs_boundaries = True
    needs_vit = True
    train_classes = "task"
    off_switch = "without prompts it trains the head of a frozen encoder, as sgd --tune head does"
    quick_flags: ClassVar = SMALL_VIT

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        name = type(self).__module__.rpartition(".")[2]
        super().__init__(require_vit(net, name), options, setup)
        self.net.freeze()
        if getattr(options, "batchwise_prompt", False):
            setup.benchmark.notes.append(VOTED)

    def refuse_layers(self, **flags: tuple[int, ...]) -> None:
        """Raise `UserError` for blocks that the network does not have, or that are named twice."""
        layers = [layer for given in flags.values() for layer in given]
        text = " ".join(f"--{name} {','.join(map(str, given))}" for name, given in flags.items())
        if max(layers, default=0) >= self.net.depth:
            raise UserError(
                f"{text}: the network has {self.net.depth} blocks; give 0 to {self.net.depth - 1}"
            )
        if len(set(layers)) < len(layers):
            raise UserError(f"{text}: a block takes one prompt; name each block once")

    def query(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D), the class token of the pass without prompts."""
        with torch.no_grad():
            return self.net.features(x)

    def edit_gradients(self, batch: Batch) -> None:
        """Clip the gradients' norm where the method has such a flag."""
        if limit := getattr(self.options, "grad_clip", 0):
            nn.utils.clip_grad_norm_(self.trainable().values(), limit)


def drawn(shape: tuple[int, ...], init: str, draws: torch.Generator) -> nn.Parameter:
    """A parameter with uniform first values, between the bounds that `--prompt_init` names."""
    return nn.Parameter(torch.empty(shape).uniform_(*INITS[init], generator=draws))


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each query and key, (N, D), (M, D) → (N, M)."""
    return F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T


def by_vote(choices: Tensor, n_prompts: int) -> Tensor:
    """(N, K) choices among `n_prompts` → (N, K): for every sample the K that are chosen most often."""
    ones = torch.ones(choices.numel(), device=choices.device)
    votes = torch.zeros(n_prompts, device=choices.device).index_add(0, choices.flatten(), ones)
    return votes.topk(choices.shape[1]).indices.expand(choices.shape)
