"""APER: adapt to the first task, then compare means of the features before and after adaptation.

Source: Zhou et al. 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
Adaptivity are All You Need" (arXiv 2303.07338; IJCV 2024), Algorithm 1: the encoder f adapts to f* in the
first task (models/parts/first_task.py); from then on, and for the first task's classes too, eq. 7:

    φ(x) = [f(x), f*(x)]      w_c = (1/N_c) Σ_{y_n = c} φ(x_n)      ŷ = argmax_c cos(φ(x), w_c)

over un-augmented images. The paper's run on CIFAR-100: adapters of 64 units, --lr 0.01 --optim_mom 0.9
--optim_wd 0.0005 --lr_scheduler cosine --n_epochs 20 --batch_size 48.
Differs from the paper: adapters have no dropout (backbones/petl.py); classes that come back as in `ncm`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.ncm import NCM
from engram.models.parts.first_task import FirstTaskAdaptation, FirstTaskOptions
from engram.models.parts.teacher import frozen_copy, share_frozen
from engram.utils import precision
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(FirstTaskOptions):
    """These are the flags of APER."""

    first_task: str = option(
        "adapter", "what learns in the first task: adapter, ssf, vpt, vpt_shallow, lora or full",
        choices=("adapter", "ssf", "vpt", "vpt_shallow", "lora", "full"),
    )  # fmt: skip


class APER(FirstTaskAdaptation, NCM):
    """Class means of two encoders' features, side by side."""

    options: Options
    takes_steps = True
    frozen_encoder = False
    off_switch: ClassVar = "after the first task nothing is trained by gradients"
    quick_flags: ClassVar = {"first_task": "full"}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        pretrained = frozen_copy(net)  # f, before anything is attached
        super().__init__(net, options, setup)
        share_frozen(net, pretrained)
        self.pretrained = pretrained
        precision.use(setup.precision, pretrained)

    @property
    def feature_dim(self) -> int:
        """The lengths of both encoders' features, added."""
        return 2 * self.net.feature_dim

    def encode(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 2D) φ(x) = [f(x), f*(x)]."""
        return torch.cat([encoder.features(x).flatten(1) for encoder in (self.pretrained, self.net)], 1)
