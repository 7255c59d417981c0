"""Networks and weights of timm, an optional package (`pip install timm`)."""

import math
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from engram.backbones.pretrained_weights import (
    Built,
    Weights,
    downloaded,
    load_into,
    read_file,
    resized_positions,
)
from engram.utils.config.options import Pixels
from engram.utils.config.registry import suggest
from engram.utils.errors import UserError


def library() -> ModuleType:
    """The package, which is optional and takes a second to import."""
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError("--backbone timm:NAME and small_vit need timm: pip install timm") from None
    return timm


def full_name(name: str, weights: Weights) -> str:
    """The network, with the tag of the weights that are wanted, as timm spells it."""
    timm = library()
    architecture = name.partition(".")[0]
    if architecture not in (valid := timm.list_models()):
        raise UserError(f"--backbone timm:{name}: there is no such network{suggest(name, valid)}")
    if weights.name in (None, "default"):
        return name
    full = weights.name if "." in weights.name else f"{architecture}.{weights.name}"
    if full not in (tags := timm.list_pretrained(f"{architecture}.*")):
        raise UserError(
            f"--pretrained {weights.name}: timm has for {architecture}: {', '.join(tags) or 'no weights'}; "
            "or give a file"
        )
    return full


def pixels(name: str, weights: Weights) -> Pixels:
    """Mean and deviation of pixels in [0, 1] as timm states them for the weights."""
    described = library().get_pretrained_cfg(full_name(name, weights))
    return tuple(described.mean), tuple(described.std)


def build(name: str, weights: Weights, side: int) -> Built:
    """The network without classifier, for images of `side` (0: the weights' own)."""
    full = full_name(name, weights)
    timm, source = library(), arguments(full, weights)
    body = downloaded(lambda: timm.create_model(full, num_classes=0, **source), full)
    described = body.pretrained_cfg
    is_fixed, native = bool(described.get("fixed_input_size")), int(described["input_size"][-1])
    side = side or (native if is_fixed or not weights.are_random else 0)
    if is_fixed and side != native:
        body = resized(body, full, side)
    if weights.file and not source:
        load_into(body, with_positions_of(body, read_file(weights.file)), weights.file)
    return Built(body, int(getattr(body, "head_hidden_size", None) or body.num_features), side)


def arguments(full: str, weights: Weights) -> dict[str, Any]:
    """What tells timm where the weights are; nothing for those of a file that are loaded by name."""
    if weights.file:
        if weights.file.suffix != ".npz":
            return {}
        overlay = {"file": str(weights.file), "custom_load": True}  # Google's layout, read without pickle
        return {"pretrained": True, "pretrained_cfg_overlay": overlay}
    if weights.name and not library().get_pretrained_cfg(full).has_weights:
        raise UserError(f"--pretrained {weights.name}: timm has no weights for {full}; give a file")
    return {"pretrained": bool(weights.name)}


def with_positions_of(body: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's weights, their position embeddings resized where they are of images of another side."""
    positions, wanted = state.get("pos_embed"), body.state_dict().get("pos_embed")
    if positions is None or wanted is None or positions.shape == wanted.shape:
        return state
    grid = body.patch_embed.grid_size
    side = math.isqrt(max(0, positions.shape[1] - wanted.shape[1] + math.prod(grid)))
    if positions.ndim != 3 or positions.shape[1] - side**2 != wanted.shape[1] - math.prod(grid):
        return state  # no square grid: `load_into` says that the shape is wrong
    return {**state, "pos_embed": resized_positions(positions, (side, side), grid)}


def resized(body: nn.Module, full: str, side: int) -> nn.Module:
    """The transformer for images of another side: position embeddings resized, all else as it is."""
    state = body.state_dict()
    if "pos_embed" not in state:
        raise UserError(f"--input_size {side}: timm:{full} takes images of its own size only")
    try:
        wanted = library().create_model(full, pretrained=False, num_classes=0, img_size=side)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"--input_size {side}: timm:{full} does not take it ({error})") from None
    sizes = (body.patch_embed.grid_size, wanted.patch_embed.grid_size)
    state["pos_embed"] = resized_positions(state["pos_embed"], *sizes)
    wanted.load_state_dict(state)
    return wanted


def transformer(**sizes: Any) -> nn.Module:
    """A plain vision transformer of timm without classifier; `sizes` are its arguments there."""
    library()
    from timm.models.vision_transformer import VisionTransformer  # an optional package, as above

    body: nn.Module = VisionTransformer(num_classes=0, **sizes)
    return body


def takes_hooks(body: nn.Module) -> bool:
    """Whether a network is a plain vision transformer, which `vit.HookedViT` computes as timm does."""
    from timm.layers import Attention  # an optional package, as above
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(body) is not VisionTransformer or body.global_pool != "token" or body.attn_pool is not None:
        return False
    return all(
        type(block) is Block and type(block.attn) is Attention and is_plain(block) for block in body.blocks
    )


def is_plain(block: nn.Module) -> bool:
    """Whether a block of timm has no layers but those that `vit.Block` calls."""
    layers = [block.drop_path1, block.drop_path2, getattr(block.attn, "norm", nn.Identity())]
    gate = getattr(block.attn, "gate", None)
    as_wide = block.attn.qkv.in_features == block.attn.proj.in_features
    return as_wide and gate is None and all(isinstance(layer, nn.Identity) for layer in layers)
