"""Small convolutional network: three 3x3 convolutions with pooling, for short runs on a CPU."""

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the small convolutional network."""

    channels: tuple[int, ...] = option((32, 64, 128), "channels of each convolution, e.g. 32,64,128", ge=1)


class GlobalMean(nn.Module):
    """(N, C, H, W) → (N, C). `AdaptiveAvgPool2d` finds the same numbers, but `vmap` takes them one by one."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over height and width."""
        return x.mean((2, 3))


class CNN(Backbone):
    """(3x3 convolution, 2x2 max-pool, ReLU) per entry of `channels`, then a global average."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]):
        super().__init__()
        self.sizes = sizes = (in_channels, *channels)
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            pool = nn.MaxPool2d(2, ceil_mode=True)  # ceil: 8x8 digits survive any number of poolings
            # ReLU last: the same numbers as before the pooling, on a quarter of them
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), pool, nn.ReLU()]
        self.layers = nn.Sequential(*layers, GlobalMean())
        self.feature_dim = sizes[-1]

    def narrower(self, n_parts: int) -> "CNN":
        """A new network with one of `n_parts` equal shares of every layer's channels."""
        channels = tuple(size // n_parts for size in self.sizes[1:])
        if 0 in channels:
            given = ",".join(map(str, self.sizes[1:]))
            raise UserError(f"--channels {given} split over {n_parts} tasks leaves no channels for a task")
        return CNN(self.sizes[0], channels)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, last channels)."""
        return self.layers(x)


def build(options: Options, input_shape: tuple[int, ...], name: str) -> CNN:
    """A CNN for images of `input_shape` (C, H, W)."""
    return CNN(input_shape[0], options.channels)
