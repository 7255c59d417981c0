"""Learning from stored features: what is left of the network when its encoder never changes.

Source: McDonnell et al. 2023 (arXiv 2307.02251) and others encode each image once for all that they compute.
"""

import dataclasses
import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets import encoding
from engram.datasets.benchmark import Benchmark
from engram.models.method import Method
from engram.models.parts import learned
from engram.models.parts.inference import evaluating
from engram.utils import distributed, precision
from engram.utils.batching import evaluation_chunk
from engram.utils.config.config import Config
from engram.utils.config.outside import label
from engram.utils.errors import UserError

NOT_IN_FEATURES = ("pretrained", "tune", "tune_size")  # flags of a backbone


class StoredFeatures(Backbone):
    """Takes an encoder's features as they are; the head is all that learns."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def features(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D), unchanged."""
        return x


def with_features(benchmark: Benchmark, net: Backbone, config: Config, method: type[Method]) -> Backbone:
    """The network for a benchmark whose images became features, or `net` where they stay.

    --cache_features auto: where the method or --tune head never changes an encoder whose weights were given;
    random ones are other weights for each seed. Raises `UserError` for `on` where that cannot be.
    """
    asked, n_views = config.run.cache_features, config.run.cache_views if method.takes_steps else 0
    is_kept = method.keeps_encoder(config.method) or getattr(config.architecture, "tune", "full") == "head"
    if asked == "off" or (asked == "auto" and not (is_kept and is_pretrained(config))):
        if n_views:
            raise UserError("--cache_views: of features that are stored; give --cache_features on")
        return net
    if n_views and not benchmark.augment.draws:
        raise UserError("--cache_views: nothing about training images is drawn; try --augment crop_flip")
    augmented = method.takes_steps and asked == "auto" and not n_views
    reason = encoding.reason_against(benchmark, augmented) or encoder_changes(config)
    reason = reason or ("several processes train" if distributed.world_size() > 1 else "")
    reason = reason or ("the method reaches into the encoder's passes" if method.needs_vit else "")
    if reason and (asked == "on" or n_views):
        raise UserError(f"--cache_{'views' if n_views else 'features on'}: {reason}")
    if reason:
        benchmark.notes.append(f"features: not stored, since {reason}")
        return net
    arithmetic = precision.resolve(config.run.precision, benchmark.device)
    precision.use(arithmetic, net)
    weights = [tensor for name, tensor in net.state_dict().items() if not name.startswith("head.")]
    settings = f"{config.run.backbone}, {flags_of(config)}, {arithmetic}"
    encode = functools.partial(encode_images, net, benchmark)
    name = re.sub(r"[^\w.-]+", "_", label(config.run.backbone))
    encoder = encoding.Encoder(name, settings, weights, net.feature_dim, encode)
    encoding.replace_images(benchmark, encoder, Path(config.run.data_dir).expanduser(), n_views)
    remaining = StoredFeatures(net.feature_dim)
    remaining.head = net.head
    return remaining


def encoder_changes(config: Config) -> str:
    """Why the encoder cannot stay as it is, where the flags say that something below the head learns."""
    tune = getattr(config.architecture, "tune", "full")
    first_task = getattr(config.method, "first_task", "none")
    if tune not in ("full", "head"):
        return f"--tune {tune} changes the encoder"
    return "" if first_task == "none" else f"--first_task {first_task} changes the encoder"


@torch.no_grad()
def encode_images(net: Backbone, benchmark: Benchmark, x: Tensor) -> Tensor:
    """(N, C, H, W) float32 → (N, D) features, the network in eval mode."""
    size = evaluation_chunk(net, benchmark.input_shape, benchmark.device)
    with evaluating(net):
        return torch.cat([net.features(chunk).flatten(1) for chunk in x.split(size)])


def is_pretrained(config: Config) -> bool:
    """Whether the encoder's weights come from a file or a library."""
    is_loaded = config.log.loadcheck and not learned.is_continued(config)
    return bool(getattr(config.architecture, "pretrained", None) or is_loaded)


def flags_of(config: Config) -> str:
    """The backbone's flags; where the weights came from is not among them, as their bytes are hashed.

    Nor is what will learn of them: it starts as the identity.
    """
    flags = dataclasses.asdict(config.architecture)
    return str({name: value for name, value in flags.items() if name not in NOT_IN_FEATURES})
