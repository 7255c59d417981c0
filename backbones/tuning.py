"""What of an encoder learns (`--tune`): everything, nothing, or something small beside its frozen weights.

The weights that do not learn have `requires_grad` False, so a method's optimizer, gradients and importances
leave them out. `tune` prepares a network when it is built, or a method's before its first task.
"""

from dataclasses import dataclass

import torch

from engram.backbones import petl
from engram.backbones.backbone import Backbone
from engram.backbones.vit import HookedViT
from engram.backbones.wrapped_network import LibraryNetwork
from engram.utils import seeding
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

KINDS = ("full", "head", "adapter", "ssf", "vpt", "vpt_shallow", "lora")
SIZES = {"adapter": 64, "lora": 10, "vpt": 5, "vpt_shallow": 5}  # AdaptFormer's, InfLoRA's and APER's

WORDS = {
    "head": "", "adapter": "adapters of {} units", "ssf": "scales and shifts",
    "vpt": "{} prompts in every block", "vpt_shallow": "{} prompts",
    "lora": "LoRA of rank {} on queries and values",
}  # fmt: skip


@dataclass(frozen=True)
class TuneOptions(OptionSet):
    """Flags of every encoder whose body may rest: what of it learns."""

    tune: str = option(
        "full", "what learns below the head: full, everything; head, nothing; or in a vision transformer of "
        "timm something small beside its frozen weights: adapter, ssf (scale and shift), vpt (prompts, new "
        "in every block), vpt_shallow, lora (of queries and values)", choices=KINDS,
    )  # fmt: skip
    tune_size: int = option(
        0, "units of an adapter, rank of LoRA or number of prompts; 0: "
        + ", ".join(f"{size} ({kind})" for kind, size in SIZES.items()), ge=0, le=4096,
    )  # fmt: skip


def tune_built(net: LibraryNetwork, options: TuneOptions) -> list[str]:
    """Tune a network while it is built, as its flags say; returns what a user should know of it.

    The run's seed stands in PyTorch's generator then; not drawing from it gives every kind the same head.
    """
    draws = seeding.generator(torch.initial_seed(), "tune")
    tune(net, options.tune, options.tune_size, draws)
    return notes(net, options.tune, options.tune_size)


def tune(net: Backbone, kind: str, size: int, draws: torch.Generator) -> None:
    """Freeze the network below its head and attach what `kind` says, which learns; nothing for `full`.

    size: of what is attached, 0 for its usual one (`SIZES`). Raises `UserError` where the network has no
    place for it.
    """
    if kind == "full":
        return
    if not isinstance(net, LibraryNetwork if kind == "head" else HookedViT):
        raise UserError(
            f"this network takes no {kind}: only timm's plain vision transformers with a class token do, "
            "such as --backbone timm:vit_small_patch16_224, and small_vit"
        )
    net.freeze()
    if isinstance(net, HookedViT):
        attach(net, kind, size or SIZES.get(kind, 0), draws)


def attach(net: HookedViT, kind: str, size: int, draws: torch.Generator) -> None:
    """Attach adapters, scales and shifts, prompts or LoRA of a size; nothing for `head`."""
    if kind == "adapter":
        petl.attach_adapters(net, size, draws)
    elif kind == "ssf":
        petl.attach_scale_shift(net)
    elif kind in ("vpt", "vpt_shallow"):
        petl.attach_visual_prompts(net, size, draws, deep=kind == "vpt")
    elif kind == "lora":
        petl.attach_lora(net, size, draws)


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
