"""Networks of timm and torchvision by name: `--backbone timm:NAME` or `--backbone torchvision:NAME`.

The library builds the network without its classifier and reads its weights; `wrapped_network.py` says what a
run needs besides. timm's plain vision transformers have hooks (`vit.py`) for prompts, adapters and LoRA.
"""

from dataclasses import dataclass, replace
from types import ModuleType

import torch

from engram.backbones import timm_library, torchvision_library, tuning
from engram.backbones.pretrained_weights import Weights
from engram.backbones.vit import HookedViT
from engram.backbones.wrapped_network import CHANNELS, LibraryNetwork
from engram.utils.config.options import Pixels, option
from engram.utils.errors import UserError

LIBRARIES = {"timm": timm_library, "torchvision": torchvision_library}


@dataclass(frozen=True)
class Options(tuning.TuneOptions):
    """Flags of the backbones of timm and torchvision."""

    pretrained: str | None = option(
        None, "weights: `default` (downloaded once), a name that the library has for them, such as "
        "augreg_in21k or IMAGENET1K_V2, or a .pth, .safetensors or .npz file, such as one that --savecheck "
        "wrote (default: random ones)",
    )  # fmt: skip
    input_size: int = option(
        0, "side to which the network brings images, after they are augmented; 0: that of --img_size, else "
        "the one that the weights were made for, with random weights the images' own where the network "
        "takes any", ge=0, le=4096,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        Weights.given(self.pretrained).refuse_missing()

    def pixels(self, backbone: str) -> Pixels | None:
        """Mean and deviation of the pixels that the weights were trained on, None for random weights."""
        library, name = split_name(backbone)
        weights = Weights.given(self.pretrained)
        statistics: Pixels | None = None if weights.are_random else library.pixels(name, weights)
        return statistics

    def for_side(self, side: int) -> "Options":
        """A network for images of `side`, unless --input_size asks for another one."""
        return self if self.input_size else replace(self, input_size=side)


def split_name(backbone: str) -> tuple[ModuleType, str]:
    """The library, and its name of the network, in LIBRARY:NAME."""
    library, _, name = backbone.partition(":")
    return LIBRARIES[library], name


def build(options: Options, input_shape: tuple[int, ...], name: str) -> LibraryNetwork:
    """The network called `name`, LIBRARY:NAME, for images of `input_shape` (C, H, W)."""
    library, network = split_name(name)
    if input_shape[0] not in (1, CHANNELS):
        raise UserError(f"--backbone {name} takes images of 1 or 3 channels, these have {input_shape[0]}")
    weights = Weights.given(options.pretrained)
    built, is_grey = library.build(network, weights, options.input_size), input_shape[0] == 1
    has_hooks = library is timm_library and timm_library.takes_hooks(built.body)
    net = HookedViT(built, is_grey) if has_hooks else LibraryNetwork(built, is_grey)
    tuned = tuning.tune_built(net, options)
    net.notes = (*notes(net, weights, input_shape), *tuned)
    if options.input_size or not net.side:  # not the side that the weights were made for
        refuse_size(net, input_shape, name)
    return net


@torch.no_grad()
def refuse_size(net: LibraryNetwork, input_shape: tuple[int, ...], name: str) -> None:
    """Raise `UserError` where the network does not take the images, before the first step does."""
    if next(net.parameters()).is_meta:
        return
    net.eval()
    try:
        net.features(torch.zeros(1, *input_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = f"{net.side}x{net.side}" if net.side else f"{input_shape[1]}x{input_shape[2]}"
        raise UserError(
            f"--backbone {name} does not take images of {size} ({' '.join(str(error).split())[:90]}): "
            "give another --input_size, such as 224"
        ) from None
    net.train()


def notes(net: LibraryNetwork, weights: Weights, input_shape: tuple[int, ...]) -> list[str]:
    """What a user should know of the network when a run starts."""
    lines = [] if weights.are_random else [f"encoder: weights {weights.file or weights.name}"]
    if net.is_grey:
        lines.append("encoder: grey images are repeated into three channels")
    if net.side and tuple(input_shape[1:]) != (net.side, net.side):
        lines.append(f"encoder: images are brought to {net.side}x{net.side} pixels (bicubic)")
    return lines
