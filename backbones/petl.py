"""Parameter-efficient tuning: small modules that learn beside a frozen vision transformer.

Sources, and with what a module starts: each leaves the network's output as it is, bit for bit, until its
first step; prompts and prefixes cannot, as one more token is attended to.

    Adapter        Chen et al. 2022, AdaptFormer (arXiv 2205.13535)     s · Up(ReLU(Down(z))), Up = 0
    ScaleShift     Lian et al. 2022, SSF (arXiv 2210.08823)             γ ⊙ y + β, γ = 1, β = 0
    LoRA           Hu et al. 2022 (arXiv 2106.09685)                    Σ_j B_j A_j x, B = 0
    VisualPrompts  Jia et al. 2022, VPT (arXiv 2203.12119)              p tokens, once or anew in each block
    Prefix         Li & Liang 2021 (arXiv 2101.00190)                   p keys and values before a block's own

Each draws its first values from the generator that it is given. Attached ones (`attach_*`) become submodules
of the network, so they are saved, loaded and resumed with it by name.
Differs from the papers: SSF's code draws γ and β around 1 and 0 with deviation .02; AdaptFormer drops a tenth
of what its ReLU lets through, here nothing, as a pass of the network draws no random numbers.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.vit import HookedViT


def kaiming(n_out: int, n_in: int, draws: torch.Generator) -> nn.Parameter:
    """(n_out, n_in) weights drawn as `nn.Linear` draws its own: uniform within ±1/√n_in."""
    values = torch.empty(n_out, n_in)
    return nn.Parameter(nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=draws))


class Adapter(nn.Module):
    """(N, L, D) → (N, L, D): s · Up(ReLU(Down(z))) through a bottleneck of `size` units."""

    def __init__(self, width: int, size: int, draws: torch.Generator, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.utils.skip_init(nn.Linear, width, size)
        self.up = nn.utils.skip_init(nn.Linear, size, width)
        self.down.weight = kaiming(size, width, draws)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, z: Tensor) -> Tensor:
        """(N, L, D) → (N, L, D)."""
        change: Tensor = self.scale * self.up(F.relu(self.down(z)))
        return change


class ScaleShift(nn.Module):
    """γ ⊙ y + β, an entry of γ and β for each channel; `axis` is that of the channels."""

    def __init__(self, width: int, axis: int = -1) -> None:
        super().__init__()
        shape = (width,) if axis == -1 else (width, *[1] * (-1 - axis))
        self.scale, self.shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, y: Tensor) -> Tensor:
        """(N, ..., D) or (N, D, H, W) → the same shape, each channel scaled and shifted."""
        return self.scale * y + self.shift


class LoRA(nn.Module):
    """(N, L, D) → (N, L, D): Σ_j B_j A_j x over `n_pairs` pairs, A_j (rank, D) drawn and B_j (D, rank) zero.

    A pair that has not learned adds zero. `learn` chooses which pairs learn; a subclass may weigh pairs in
    `factors`.
    """

    def __init__(self, width: int, rank: int, draws: torch.Generator, n_pairs: int = 1) -> None:
        super().__init__()
        self.down = nn.ParameterList(kaiming(rank, width, draws) for _ in range(n_pairs))  # A
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(width, rank)) for _ in range(n_pairs))  # B

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (n_pairs · rank, D) and B (D, n_pairs · rank), all pairs side by side."""
        return torch.cat(list(self.down)), torch.cat(list(self.up), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) → (N, L, D)."""
        down, up = self.factors()
        return F.linear(F.linear(x, down), up)

    def learn(self, pair: int, down: bool = True) -> None:
        """Let one pair learn and no other; `down` False: its A stays as it is, too."""
        for j, (a, b) in enumerate(zip(self.down, self.up, strict=True)):
            a.requires_grad_(j == pair and down)
            b.requires_grad_(j == pair)


class VisualPrompts(nn.Module):
    """Learned tokens behind all others, (n_layers, p, D): of n_layers blocks each has its own.

    One layer: they pass through the network (VPT-shallow). As many as blocks: each block replaces them
    (VPT-deep). Attention does not know the order of tokens, so their position has no effect.
    """

    def __init__(self, n_layers: int, n_tokens: int, width: int, draws: torch.Generator) -> None:
        super().__init__()
        bound = math.sqrt(6 / (3 * 16 * 16 + width))  # the paper's, for patches of 16 pixels
        self.tokens = nn.Parameter(torch.empty(n_layers, n_tokens, width))
        nn.init.uniform_(self.tokens, -bound, bound, generator=draws)

    def forward(self, z: Tensor, i: int) -> Tensor:
        """Tokens (N, L, D) that enter block i → with the block's own prompts, at the first block p more."""
        if i >= len(self.tokens):
            return z
        prompts = self.tokens[i].expand(len(z), -1, -1)
        others = z if i == 0 else z[:, : z.shape[1] - prompts.shape[1]]
        return torch.cat([others, prompts.to(z.dtype)], 1)


class Prefix(nn.Module):
    """p learned keys and values of one block, which every sample gets: fit for `Prompts.prefixes`."""

    def __init__(self, n_tokens: int, width: int, draws: torch.Generator) -> None:
        super().__init__()
        self.key, self.value = (
            nn.Parameter(torch.empty(n_tokens, width).uniform_(-1, 1, generator=draws)) for _ in range(2)
        )

    def forward(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values (n, p, D) for n samples."""
        return self.key.expand(n, -1, -1), self.value.expand(n, -1, -1)


class OneOf(nn.Module):
    """Several modules of one shape, of which `chosen` is used: adapters of tasks, for instance.

    What is chosen is saved with the network.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members, self.chosen = nn.ModuleList(members), 0

    def forward(self, x: Tensor) -> Tensor:
        """What the chosen module makes of x."""
        output: Tensor = self.members[self.chosen](x)
        return output

    def learn(self, member: int | None) -> None:
        """Let one member learn and no other; None: none."""
        for j, module in enumerate(self.members):
            module.requires_grad_(j == member)

    def get_extra_state(self) -> Tensor:
        """The number of the chosen module, for checkpoints."""
        return torch.tensor(self.chosen)

    def set_extra_state(self, state: Tensor) -> None:
        """Choose the module that was chosen when the state was taken."""
        self.chosen = int(state)


def attach_adapters(net: HookedViT, size: int, draws: torch.Generator, scale: float = 0.1) -> list[Adapter]:
    """Give each block an adapter; returns them by block."""
    adapters = [Adapter(net.width, size, draws, scale).to(device(net)) for _ in range(net.depth)]
    for block, adapter in zip(net.blocks, adapters, strict=True):
        block.adapter = adapter
    return adapters


def attach_adapter_sets(
    net: HookedViT, n_sets: int, size: int, draws: torch.Generator, scale: float = 0.1
) -> list[OneOf]:
    """Give each block `n_sets` adapters, such as one a task, of which it uses one; returns them by block."""
    choices = []
    for block in net.blocks:
        choice = OneOf(Adapter(net.width, size, draws, scale) for _ in range(n_sets)).to(device(net))
        block.adapter = choice
        choices.append(choice)
    return choices


def attach_lora(
    net: HookedViT, rank: int, draws: torch.Generator, targets: str = "qv", n_pairs: int = 1
) -> list[LoRA]:
    """Give the projections named in `targets`, of q, k and v, in every block a LoRA; returns them all."""
    added = []
    for block in net.blocks:
        for name in targets:
            block.attn.lora[name] = LoRA(net.width, rank, draws, n_pairs).to(device(net))
            added.append(block.attn.lora[name])
    return added


def attach_scale_shift(net: HookedViT) -> list[ScaleShift]:
    """Scale and shift what comes out of every linear, convolution and norm layer of the body."""
    added = []
    for layer in list(net.body.modules()):
        if isinstance(layer, nn.Linear | nn.LayerNorm | nn.Conv2d):
            is_image = isinstance(layer, nn.Conv2d)
            width = layer.normalized_shape[-1] if isinstance(layer, nn.LayerNorm) else len(layer.weight)
            layer.scale_shift = ScaleShift(width, -3 if is_image else -1).to(device(net))
            layer.register_forward_hook(_scale_and_shift)
            added.append(layer.scale_shift)
    return added


def _scale_and_shift(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Run as a forward hook of a layer with `scale_shift`; a copy of the network keeps it."""
    changed: Tensor = layer.scale_shift(output)
    return changed


def attach_visual_prompts(
    net: HookedViT, n_tokens: int, draws: torch.Generator, deep: bool = True
) -> VisualPrompts:
    """Give the network prompts of its own, new ones in every block or, not `deep`, in the first alone."""
    prompts = VisualPrompts(net.depth if deep else 1, n_tokens, net.width, draws).to(device(net))
    net.visual_prompts = prompts
    return prompts


def choose(choices: Sequence[OneOf], member: int) -> None:
    """Use the same member, such as a task's, in every block."""
    for choice in choices:
        choice.chosen = member


def device(net: nn.Module) -> torch.device:
    """Where the network's parameters are."""
    return next(net.parameters()).device
