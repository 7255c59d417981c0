"""What of an encoder learns (`--tune`): everything, nothing, or something small beside its frozen weights.

The weights that do not learn have `requires_grad` False, so a method's optimizer, gradients and importances
leave them out. `tune` prepares a network when it is built; `attach` is for methods that begin to tune later.
"""

from functools import partial

import torch

from engram.backbones import petl
from engram.backbones.library_network import LibraryNetwork
from engram.backbones.vit import HookedViT
from engram.utils.errors import UserError

KINDS = ("full", "head", "adapter", "ssf", "vpt", "vpt_shallow", "lora")
SIZES = {"adapter": 64, "lora": 10, "vpt": 5, "vpt_shallow": 5}  # AdaptFormer's, InfLoRA's and APER's

WORDS = {
    "head": "", "adapter": "adapters of {} units", "ssf": "scales and shifts",
    "vpt": "{} prompts in every block", "vpt_shallow": "{} prompts",
    "lora": "LoRA of rank {} on queries and values",
}  # fmt: skip


def tune(net: LibraryNetwork, name: str, kind: str, size: int, draws: torch.Generator) -> None:
    """Freeze the network below its head and attach what `kind` says; nothing for `full`.

    name: of the backbone, for the message. size: of what is attached, 0 for its usual one (`SIZES`).
    """
    if kind == "full":
        return
    net.freeze()
    if kind != "head":
        attach(net, name, kind, size, draws)


def attach(net: LibraryNetwork, name: str, kind: str, size: int, draws: torch.Generator) -> None:
    """Attach adapters, scales and shifts, prompts or LoRA, which learn; the arguments are those of `tune`."""
    if not isinstance(net, HookedViT):
        raise UserError(
            f"--tune {kind}: {name} is no plain vision transformer of timm with a class token; take one, as "
            "timm:vit_small_patch16_224, or --tune head"
        )
    size = size or SIZES.get(kind, 0)
    actions = {
        "adapter": partial(petl.attach_adapters, net, size, draws),
        "ssf": partial(petl.attach_scale_shift, net),
        "vpt": partial(petl.attach_visual_prompts, net, size, draws),
        "vpt_shallow": partial(petl.attach_visual_prompts, net, size, draws, deep=False),
        "lora": partial(petl.attach_lora, net, size, draws),
    }
    actions[kind]()


def notes(net: LibraryNetwork, kind: str, size: int) -> list[str]:
    """A line that says what of the encoder learns, where that is not all of it."""
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    if kind == "full":
        return []
    added = sum(p.numel() for p in net.parameters() if p.requires_grad)
    what = f"{WORDS[kind].format(size or SIZES.get(kind))} learn ({rounded(added)} parameters)"
    return [f"encoder: {what if added else 'the head alone learns'}, {rounded(frozen)} others do not"]


def rounded(n: int) -> str:
    """`86 M`, `1.2 M`, `590 k` or the number itself."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return str(n)
