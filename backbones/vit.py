"""Vision transformers of timm with room for what is learned beside them: prompts, prefixes, adapters, LoRA.

Source: Dosovitskiy et al. 2021 (arXiv 2010.11929). timm builds the layers and loads their weights; here is
the forward pass, visible and with hooks. With nothing attached its features equal timm's bit for bit, and the
names in `state_dict` are timm's (tests/unit/test_vit.py).

    hook              who fills it                  what it maps, N samples, L tokens, D = `width`
    Prompts.tokens    an argument of each pass      tokens (N, p, D) behind the class token
    Prompts.prefixes  an argument of each pass      block → keys and values, each (N, p, D), before its own
    block.adapter     a module, None at first       (N, L, D) → (N, L, D), parallel to the MLP
    block.attn.lora   modules by name: q, k or v    (N, L, D) → (N, L, D), added to that projection
    net.visual_prompts  a module, None at first     tokens of its own, see `petl.VisualPrompts`

Modules for them are in `petl.py`; any module of that shape fits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.pretrained_weights import Built
from engram.backbones.wrapped_network import LibraryNetwork
from engram.utils import compat
from engram.utils.precision import in_own_precision


@dataclass(frozen=True)
class Prompts:
    """What one pass adds for each of its N samples.

    tokens: (N, p, D), placed behind the class token and without a position. prefixes: number of a block →
    keys and values, each (N, p, D), which stand before the block's own; its queries stay as they are.
    """

    tokens: Tensor | None = None
    prefixes: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Attention(nn.Module):
    """Multi-head self-attention with timm's layers, a prefix of keys and values, and additions to q, k, v."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.num_heads: int = source.num_heads
        self.qkv, self.q_norm, self.k_norm = source.qkv, source.q_norm, source.k_norm
        self.proj = source.proj
        self.lora = nn.ModuleDict()  # q, k, v → what is added to the projection

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(N, L, D), (keys, values) of (N, p, D) → (N, L, D): softmax(q [p_K; k]ᵀ / √d) [p_V; v]."""
        projections = zip("qkv", self.qkv(x).chunk(3, dim=-1), strict=True)
        added = (y + self.lora[name](x) if name in self.lora else y for name, y in projections)
        q, k, v = (self.by_head(y) for y in added)
        q, k = self.q_norm(q), self.k_norm(k)
        if prefix is not None:
            k, v = (
                torch.cat([self.by_head(p.to(y.dtype)), y], 2) for p, y in zip(prefix, (k, v), strict=True)
            )
        y = attention(q, k, v)
        output: Tensor = self.proj(y.transpose(1, 2).reshape(x.shape))
        return output

    def by_head(self, x: Tensor) -> Tensor:
        """(N, L, D) → (N, heads, L, D / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v of each head; spelled out under `vmap`, for which the fused kernel has no rule."""
    if compat.in_vmap(q):
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    """A transformer block of timm's layers: z ← z + Attention(LN(z)), z ← z + MLP(LN(z)) + adapter(z)."""

    adapter: nn.Module | None

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = source.norm1, Attention(source.attn), source.ls1
        self.norm2, self.mlp, self.ls2 = source.norm2, source.mlp, source.ls2
        self.register_module("adapter", None)

    def forward(self, z: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(N, L, D) → (N, L, D); the adapter sees the residual stream after attention, not normalised."""
        z = z + self.ls1(self.attn(self.norm1(z), prefix))
        after_mlp: Tensor = z + self.ls2(self.mlp(self.norm2(z)))
        return after_mlp if self.adapter is None else after_mlp + self.adapter(z)


class HookedViT(LibraryNetwork):
    """A vision transformer whose feature is its class token; depth blocks of `width` and `num_heads`."""

    visual_prompts: nn.Module | None

    def __init__(self, built: Built, is_grey: bool) -> None:
        super().__init__(built, is_grey)
        self.body.blocks = nn.Sequential(*map(Block, self.body.blocks))
        self.depth, self.width = len(self.body.blocks), self.feature_dim
        self.num_heads: int = self.body.blocks[0].attn.num_heads
        self.register_module("visual_prompts", None)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, in their order."""
        return list(self.body.blocks)

    def features(self, x: Tensor, prompts: Prompts | None = None) -> Tensor:
        """(N, C, H, W) → (N, D), the class token after the last norm."""
        pooled: Tensor = self.body.forward_head(self.tokens(x, prompts), pre_logits=True)
        return pooled

    @in_own_precision
    def tokens(self, x: Tensor, prompts: Prompts | None = None) -> Tensor:
        """(N, C, H, W) → (N, L, D) normed: the class token, the p prompts, registers if any, patches."""
        prompts = prompts or Prompts()
        z = self.embedded(self.prepared(x))
        if prompts.tokens is not None:
            z = torch.cat([z[:, :1], prompts.tokens.to(z.dtype), z[:, 1:]], 1)
        length = z.shape[1]
        for i, block in enumerate(self.body.blocks):
            if self.visual_prompts is not None:
                z = self.visual_prompts(z, i)
            z = block(z, prompts.prefixes.get(i))
        normed: Tensor = self.body.norm(z[:, :length])
        return normed

    def embedded(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 1 + registers + patches, D) with positions; timm's forward begins so."""
        body = self.body
        z: Tensor = body.norm_pre(body.patch_drop(compat.with_positions(body, body.patch_embed(x))))
        return z
