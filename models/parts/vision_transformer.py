"""What methods share that put prompts, adapters or LoRA into a vision transformer."""

from typing import Any

from engram.backbones.backbone import Backbone
from engram.backbones.vit import HookedViT
from engram.utils.errors import UserError

# The smallest network that such a method runs on, and few steps: `quick_flags`.
SMALL_VIT: dict[str, Any] = {
    "backbone": "small_vit", "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "batch_size": 15
}  # fmt: skip


def require_vit(net: Backbone, name: str) -> HookedViT:
    """The network of the method called `name`, which must have hooks; `UserError` for any other.

    The method says itself what learns, so whatever --tune froze or attached is refused as well.
    """
    if isinstance(net, HookedViT):
        if not all(p.requires_grad for p in net.parameters()):
            raise UserError(f"--model {name} chooses itself what learns: leave --tune out")
        return net
    raise UserError(
        f"--model {name} needs a vision transformer with a class token and hooks: --backbone "
        "timm:vit_small_patch16_224 --pretrained default or another plain one of timm; or small_vit for "
        "small images, which has random weights unless --pretrained names those of a run"
    )
