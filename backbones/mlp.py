"""Multi-layer perceptron with ReLU; 784-100-100-10 with Xavier-uniform weights is MER's network.

Source: Riemer et al. 2019 (MER) and Lopez-Paz & Ranzato 2017 (GEM): weights U(±sqrt(6/(fan_in + fan_out))),
biases 0, output layer included.
"""

import itertools
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from backbones.backbone import Backbone
from utils.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the multi-layer perceptron."""

    hidden_sizes: tuple[int, ...] = option((100, 100), "units of each hidden layer, e.g. 100,100", ge=1)


class MLP(Backbone):
    """Flatten, then Linear + ReLU for each hidden size."""

    def __init__(self, input_size: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        sizes = (input_size, *hidden_sizes)
        layers = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.feature_dim = sizes[-1]

    def features(self, x: Tensor) -> Tensor:
        """(N, ...) → (N, last hidden size)."""
        return self.layers(x)

    def init_weights(self) -> None:
        """Xavier-uniform weights, zero biases, head included."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


def build(options: Options, input_shape: tuple[int, ...], name: str) -> MLP:
    """An MLP for images of `input_shape` (C, H, W)."""
    return MLP(prod(input_shape), options.hidden_sizes)
