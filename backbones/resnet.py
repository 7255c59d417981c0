"""ResNet-18, -34 and -50 with the CIFAR stem (3x3 convolution, no max-pool); `--width` scales all layers.

Source: He et al. 2016; stem and widths as in the DER and memorization papers' code. Blocks are
torchvision's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.batch_norm import BatchNorm2d
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    Block = type[BasicBlock] | type[Bottleneck]

NAMES = ("resnet18", "resnet34", "resnet50")
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the ResNet backbones."""

    width: float = option(1.0, "multiplies the channels of every layer (64 in the first)", gt=0, le=1000)


class ResNet(Backbone):
    """Four stages of residual blocks with 1, 2, 4 and 8 times `channels`, then a global average."""

    def __init__(self, block: "Block", depths: tuple[int, ...], in_channels: int, channels: int):
        super().__init__()
        self.shape = (block, depths, in_channels, channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        stages: list[nn.Module] = []
        width = channels
        for i, depth in enumerate(depths):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stages.append(_block(block, width, channels * 2**i, stride))
                width = channels * 2**i * block.expansion
        self.stages = nn.Sequential(*stages)
        self.feature_dim = width

    def narrower(self, n_parts: int) -> "ResNet":
        """A new network with one of `n_parts` equal shares of every layer's channels."""
        block, depths, in_channels, channels = self.shape
        if channels < n_parts:
            raise UserError(f"--width: {channels} channels split over {n_parts} tasks leave none for a task")
        return ResNet(block, depths, in_channels, channels // n_parts)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 8 · channels · expansion)."""
        x = self.bn1(self.conv1(x)).relu()
        return self.stages(x).mean((2, 3))


def _block(block: "Block", fan_in: int, planes: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or fan_in != planes * block.expansion:
        convolution = nn.Conv2d(fan_in, planes * block.expansion, 1, stride, bias=False)
        shortcut = nn.Sequential(convolution, BatchNorm2d(planes * block.expansion))
    return block(fan_in, planes, stride, shortcut, norm_layer=BatchNorm2d)


def build(options: Options, input_shape: tuple[int, ...], name: str) -> ResNet:
    """The ResNet called `name` for images of `input_shape` (C, H, W)."""
    from torchvision.models.resnet import BasicBlock, Bottleneck  # slow to import, needed only here

    block = Bottleneck if name == "resnet50" else BasicBlock
    return ResNet(block, DEPTHS[name], input_shape[0], max(1, round(64 * options.width)))
