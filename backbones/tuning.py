"""What of an encoder learns (`--tune`): everything, nothing, or something small beside its frozen weights.

The weights that do not learn have `requires_grad` False, so a method's optimizer, gradients and importances
leave them out. `tune` prepares a network when it is built; `attach` is for methods that begin to tune later.
"""

from dataclasses import dataclass
from functools import partial

import torch

from engram.backbones import petl
from engram.backbones.library_network import LibraryNetwork
from engram.backbones.vit import HookedViT
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


def tune_built(net: LibraryNetwork, name: str, options: TuneOptions) -> list[str]:
    """Tune a network while it is built, as its flags say; returns what a user should know of it.

    The run's seed stands in PyTorch's generator then; not drawing from it gives every kind the same head.
    """
    draws = seeding.generator(torch.initial_seed(), "tune")
    tune(net, name, options.tune, options.tune_size, draws)
    return notes(net, options.tune, options.tune_size)


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
