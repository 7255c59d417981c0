"""Write a new backbone's skeleton: backbones/NAME.py and its test.

    python scripts/new_backbone.py my_net
    python -m pytest tests/unit/test_my_net.py
    python main.py --model er --dataset seq-digits --backbone my_net

The skeleton is a small network that works, two fully connected layers; replace them.
"""

import sys

from engram.scripts.skeletons import Skeleton
from engram.utils.door import guarded

BACKBONE = '''"""TITLE: one line for --help, at most 100 characters, that ends with a period.

Source: AUTHORS YEAR, "TITLE OF THE PAPER" (arXiv NUMBER).
"""

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of TITLE."""

    NAME_width: int = option(64, "units of each layer", ge=1)


class CLASS(Backbone):
    """Two fully connected layers; the head is attached to what `features` returns."""

    def __init__(self, n_inputs: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.feature_dim = width

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, width)."""
        return self.layers(x.flatten(1))


def build(options: Options, input_shape: tuple[int, ...], name: str) -> CLASS:
    """The network for images of `input_shape` (C, H, W)."""
    return CLASS(prod(input_shape), options.NAME_width)
'''

TEST = '''"""TITLE against its formula."""

import torch

from engram.utils.config import registry


def test_features_are_the_formula():
    module = registry.load("backbones", "NAME")
    net = module.build(module.Options(NAME_width=4), (1, 3, 3), "NAME")
    x = torch.rand(2, 1, 3, 3)
    first, second = net.layers[0], net.layers[2]
    hidden = (x.flatten(1) @ first.weight.T + first.bias).clamp(min=0)
    expected = (hidden @ second.weight.T + second.bias).clamp(min=0)
    assert net.feature_dim == 4
    torch.testing.assert_close(net.features(x), expected)
'''

SKELETON = Skeleton(
    "backbones",
    {"backbones/NAME.py": BACKBONE, "tests/unit/test_NAME.py": TEST},
    "python -m pytest tests/unit/test_NAME.py; python scripts/check_plugin.py NAME --kind backbone",
)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Write the skeleton that the command line names; returns the exit code."""
    return SKELETON.run(SKELETON.parser(__doc__).parse_args(argv).name)


if __name__ == "__main__":
    sys.exit(main())
