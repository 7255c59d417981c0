"""A network of a library as a backbone: what a run needs besides what the library has built.

Images are brought to the side that the network wants (bicubic, on the device), grey ones are repeated into
three channels, and dropout and stochastic depth are off, since they draw from the global generator while runs
must repeat and resume.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.pretrained_weights import Built

CHANNELS = 3


class LibraryNetwork(Backbone):
    """A library's network without its classifier.

    side: to which images are brought first, 0 for their own. is_grey: whether one channel is repeated into
    three. is_frozen: whether the body keeps what was trained before the run.
    """

    def __init__(self, built: Built, is_grey: bool) -> None:
        super().__init__()
        self.body, self.feature_dim, self.side = built
        self.is_grey, self.is_frozen = is_grey, False
        for module in self.body.modules():
            if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.p = 0.0

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D), what the library's classifier would see."""
        features: Tensor = self.body(self.prepared(x)).flatten(1)
        return features

    def prepared(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 3, side, side), as the library's network takes images."""
        if self.is_grey:
            x = x.expand(-1, CHANNELS, -1, -1)
        if self.side and x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", align_corners=False, antialias=True)
        return x

    def freeze(self) -> None:
        """Let nothing but the head learn from here on: parameters, and batch norm's running statistics."""
        for name, parameter in self.named_parameters():
            if not name.startswith("head."):
                parameter.requires_grad_(False)
        self.is_frozen = True

    def attached(self) -> dict[str, Tensor]:
        """Of a frozen body what learns beside it, by name."""
        learning = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        return {n: p for n, p in learning.items() if self.is_frozen and not n.startswith("head.")}

    def train(self, mode: bool = True) -> "LibraryNetwork":
        """Training mode for all but a frozen body."""
        super().train(mode)
        if self.is_frozen:
            self.body.eval()
        return self
