"""Vision transformer for small images, of any depth and width, with random weights or a run's (needs timm).

Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), built by timm; patches of 4 pixels make 64 of a 32x32
image. It has the hooks of timm's pre-trained ones (`vit.py`) for prompts, adapters and LoRA: train it on some
classes, then give --pretrained what --savecheck wrote (the encoder without its head; --loadcheck takes both).
"""

from dataclasses import dataclass
from pathlib import Path

from engram.backbones import timm_library
from engram.backbones.pretrained_weights import Built, Weights, load_into, read_file
from engram.backbones.tuning import TuneOptions, tune_built
from engram.backbones.vit import HookedViT
from engram.backbones.wrapped_network import CHANNELS
from engram.utils.config.options import OptionError, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class Options(TuneOptions):
    """Flags of the small vision transformer."""

    patch_size: int = option(4, "side of a patch in pixels; it must divide the image's sides", ge=1, le=1024)
    embed_dim: int = option(192, "width of a token", ge=1, le=65536)
    depth: int = option(6, "number of blocks", ge=1, le=1000)
    num_heads: int = option(3, "heads of each block's attention; they share the width", ge=1)
    pretrained: str | None = option(
        None, "file of weights of such a network, as --savecheck writes them; its head is left out"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pretrained:
            return
        if Weights.given(self.pretrained).name and not Path(self.pretrained).exists():
            raise OptionError(
                f"--pretrained {self.pretrained}: expected a file that --savecheck wrote of such a network; "
                "small_vit has no published weights (--backbone timm:NAME --pretrained default has)"
            )
        Weights(file=Path(self.pretrained).expanduser()).refuse_missing()


def build(options: Options, input_shape: tuple[int, ...], name: str) -> HookedViT:
    """The transformer for images of `input_shape` (C, H, W)."""
    n_channels, *sides = input_shape
    refuse_sizes(options, n_channels, sides)
    body = timm_library.transformer(
        img_size=tuple(sides),
        patch_size=options.patch_size,
        in_chans=CHANNELS,
        embed_dim=options.embed_dim,
        depth=options.depth,
        num_heads=options.num_heads,
    )
    if options.pretrained:
        file = Path(options.pretrained).expanduser()
        load_into(body, read_file(file), file)
    net = HookedViT(Built(body, options.embed_dim, 0), is_grey=n_channels == 1)
    net.notes = tuple(tune_built(net, options))
    return net


def refuse_sizes(options: Options, n_channels: int, sides: list[int]) -> None:
    """Raise `UserError` where the images do not fit the patches, or the heads do not fit the width."""
    if n_channels not in (1, CHANNELS):
        raise UserError(f"--backbone small_vit takes images of 1 or 3 channels, these have {n_channels}")
    if any(side % options.patch_size for side in sides):
        size = "x".join(map(str, sides))
        raise UserError(f"--patch_size {options.patch_size}: does not divide the sides of {size} images")
    if options.embed_dim % options.num_heads:
        raise UserError(
            f"--num_heads {options.num_heads}: does not divide the width, --embed_dim {options.embed_dim}"
        )
