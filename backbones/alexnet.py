"""AlexNet with torchvision's layers and names; `--pretrained` starts from its ImageNet weights.

Source: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv
1404.5997), as torchvision has it, without the last layer. The convolutions need images of 63 pixels:
smaller ones are enlarged to 64 (bilinear), larger ones taken as they are (64x64 leaves one position for
the average, which repeats it 6x6 as torchvision does); `--input_size 224` brings any image to the size
that the pre-trained weights were made for. With `--pretrained` images are normalised by ImageNet's mean
and deviation instead of the benchmark's, unless --pixel_mean and --pixel_std say otherwise. Dropout
draws from a stream of the run's seed, not from the global generator, so runs repeat and resume.
"""

from dataclasses import dataclass
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.utils import seeding
from engram.utils.config.options import OptionError, OptionSet, Pixels, option
from engram.utils.errors import UserError

IMAGENET: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what torchvision's weights expect
SMALLEST, ENLARGED, LARGEST = 63, 64, 4096


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the AlexNet backbone."""

    pretrained: bool = option(False, "start from torchvision's ImageNet weights")
    num_freeze_layers: int = option(
        0, "the first so many of the 5 convolutions never learn and have no importance", ge=0, le=5
    )
    dropout: float = option(0.5, "chance to drop an input of the two hidden layers", ge=0, lt=1)
    width: float = option(
        1.0, "multiplies the channels and units of every layer (64 in the first)", gt=0, le=1000
    )
    input_size: int = option(
        0,
        f"side to which images are brought first, e.g. 224; 0: their own, {ENLARGED} at least",
        ge=0,
        le=LARGEST,
    )

    def __post_init__(self):
        super().__post_init__()
        if 0 < self.input_size < SMALLEST:
            raise OptionError(f"--input_size {self.input_size}: must be >= {SMALLEST}, or 0")
        if self.pretrained and self.width != 1:
            raise OptionError(f"--pretrained: the weights are of --width 1, not {self.width}; leave one out")

    def pixels(self, backbone: str) -> Pixels | None:
        """ImageNet's mean and deviation for pre-trained weights."""
        return IMAGENET if self.pretrained else None


class Dropout(nn.Module):
    """Zeroes inputs at random and scales the others up, in training; the n-th call draws the n-th mask."""

    def __init__(self, p: float):
        super().__init__()
        self.p, self.n_calls = p, 0
        self.seed = int(torch.randint(1 << 62, ()).item())  # from the stream of initial weights

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D)."""
        if not self.training or not self.p:
            return x
        draws = seeding.generator(self.seed, "dropout", self.n_calls, device=x.device)
        self.n_calls += 1
        mask = torch.rand(x.shape, generator=draws, device=x.device) >= self.p
        return x * mask / (1 - self.p)

    def get_extra_state(self) -> Tensor:
        """The number of masks drawn so far, for checkpoints."""
        return torch.tensor(self.n_calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue with the mask after the last one drawn."""
        self.n_calls = int(state)


class AlexNet(Backbone):
    """Five convolutions and two hidden layers; `body` has torchvision's parameter names."""

    def __init__(self, in_channels: int, options: Options):
        super().__init__()
        self.input_size = options.input_size
        a, b, c, d, e, self.feature_dim = (
            max(1, round(n * options.width)) for n in (64, 192, 384, 256, 256, 4096)
        )
        convolutions = nn.Sequential(
            nn.Conv2d(in_channels, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        hidden = nn.Sequential(
            Dropout(options.dropout), nn.Linear(e * 36, self.feature_dim), nn.ReLU(),
            Dropout(options.dropout), nn.Linear(self.feature_dim, self.feature_dim), nn.ReLU(),
        )  # fmt: skip
        self.body = nn.ModuleDict({"features": convolutions, "classifier": hidden})

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 4096 · width)."""
        side = self.input_size or (ENLARGED if min(x.shape[2:]) < SMALLEST else 0)
        if side and x.shape[2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
        x = F.adaptive_avg_pool2d(self.body["features"](x), 6)
        return self.body["classifier"](x.flatten(1))

    @torch.no_grad()
    def load_imagenet(self, weights: dict[str, Tensor]) -> None:
        """Copy torchvision's weights, by name, into the layers below the head."""
        for name, parameter in self.body.named_parameters():
            parameter.copy_(weights[name])

    def freeze(self, n_layers: int) -> None:
        """Make the first convolutions' weights constants (buffers), through every task.

        Whatever looks for parameters does not find them: optimizer, importance, `requires_grad_(True)`.
        """
        convolutions = [m for m in self.body["features"].children() if isinstance(m, nn.Conv2d)]
        for layer in convolutions[:n_layers]:
            for name, parameter in list(layer.named_parameters()):
                delattr(layer, name)
                layer.register_buffer(name, parameter.detach())


def imagenet_weights() -> dict[str, Tensor]:
    """torchvision's weights by name, downloaded once."""
    from torchvision.models import AlexNet_Weights  # slow to import, needed only here

    weights = AlexNet_Weights.IMAGENET1K_V1
    file = f"{torch.hub.get_dir()}/checkpoints/{weights.url.rpartition('/')[2]}"
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # no connection, a damaged file
        raise UserError(
            f"--pretrained: AlexNet's weights could not be loaded ({' '.join(str(error).split())[:90]}); put "
            f"{weights.url} there as {file} (delete an old one), or leave --pretrained out"
        ) from None


def build(options: Options, input_shape: tuple[int, ...], name: str) -> AlexNet:
    """AlexNet for images of `input_shape` (C, H, W)."""
    if options.pretrained and input_shape[0] != 3:
        raise UserError(
            f"--pretrained: the weights are for colour images, these have {input_shape[0]} channel"
        )
    weights = imagenet_weights() if options.pretrained else None
    net = AlexNet(input_shape[0], options)
    if weights:
        net.load_imagenet(weights)
    net.freeze(options.num_freeze_layers)
    return net
