"""Adapters of tasks that are merged while they learn, as MOS's paper says and as its released code does."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from engram.backbones.petl import Adapter, OneOf, device
from engram.backbones.vit import HookedViT

REWRITTEN = (
    "WARNING: --as_released: every pass rewrites the adapters, in tests too, as the released code does and "
    "the paper does not; accuracies then depend on what was tested before (not comparable)"
)


class MergedAdapters(OneOf):
    """Adapters of one block, by task; the one that learns is drawn towards the mean of those before it.

    Source: Sun et al. 2025 (MOS, arXiv 2412.09441): Â_t ← (1 − α) Â_t + (α / t) Σ_{j < t} A_j.
    """

    def __init__(self, members: Iterable[nn.Module], momentum: float) -> None:
        super().__init__(members)
        self.momentum = momentum  # α
        self.earlier: list[Tensor] = []  # the mean, by parameter; made again when a task is entered

    def learn(self, member: int | None) -> None:
        """Let one member learn and no other; None: none."""
        super().learn(member)
        self.earlier = self.mean_before(member or 0)

    def trained(self) -> nn.ModuleList:
        """The members as training left them."""
        return self.members

    @torch.no_grad()
    def mean_before(self, member: int) -> list[Tensor]:
        """The mean of the members before one, by parameter; empty for the first."""
        values = (module.parameters() for module in self.trained()[:member])
        return [torch.stack(of_parameter).mean(0) for of_parameter in zip(*values, strict=True)]

    @torch.no_grad()
    def merge(self) -> None:
        """Draw the chosen member towards the mean of those before it; the first stays as it is."""
        if self.earlier:
            for p, mean in zip(self.members[self.chosen].parameters(), self.earlier, strict=True):
                p.lerp_(mean, self.momentum)

    def keep(self, member: int) -> None:
        """Called where the training of a member ends."""


class RewrittenAdapters(MergedAdapters):
    """What MOS's released code does: each pass, in tests too, merges the adapters once for each block of it.

    Its loop over L blocks merges the adapters of all blocks, before each block, and stores them: block i
    (from 0) uses adapters merged i + 1 times, and of the task's own (1 − α)^L is left after the pass.
    """

    def __init__(self, members: Iterable[nn.Module], momentum: float, i: int, n_blocks: int) -> None:
        super().__init__(members, momentum)
        self.i, self.n_blocks = i, n_blocks
        self.copies = copy.deepcopy(self.members).requires_grad_(False)

    def trained(self) -> nn.ModuleList:
        """Copies from the end of each member's training: tests rewrite the members themselves."""
        return self.copies

    def keep(self, member: int) -> None:
        """Copy a member whose training ends."""
        self.copies[member].load_state_dict(self.members[member].state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) → (N, L, D), what the chosen member makes of x amid its rewriting."""
        earlier = self.mean_before(self.chosen)
        self.rewrite(earlier, self.i + 1)
        output = super().forward(x)
        self.rewrite(earlier, self.n_blocks - self.i - 1)
        return output

    def rewrite(self, earlier: list[Tensor], times: int) -> None:
        """Merge the chosen member so many times, into new tensors: the gradient's pass has the old ones."""
        own = (1 - self.momentum) ** times
        for p, mean in zip(self.members[self.chosen].parameters(), earlier, strict=bool(earlier)):
            p.data = torch.lerp(mean, p.data, own)


def attach(
    net: HookedViT, n_tasks: int, size: int, draws: torch.Generator, momentum: float, as_released: bool
) -> None:
    """Give each block adapters of `n_tasks` tasks that are merged while they learn, or as released."""
    for i, block in enumerate(net.blocks):
        members = [Adapter(net.width, size, draws) for _ in range(n_tasks)]
        merged = MergedAdapters(members, momentum)
        released = RewrittenAdapters(members, momentum, i, net.depth) if as_released else None
        block.adapter = (released or merged).to(device(net))
