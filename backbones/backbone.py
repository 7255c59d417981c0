"""Backbone: the interface of every architecture (features, head, logits) and how a run's network is built."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from engram.backbones.heads import Head, SharedHead, TaskHeads
from engram.utils import device as devices
from engram.utils import seeding
from engram.utils.config import registry
from engram.utils.config.options import OptionSet
from engram.utils.config.outside import label
from engram.utils.errors import UserError
from engram.utils.precision import in_own_precision
from engram.utils.training.ports import StreamTask

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class Backbone(nn.Module):
    """An architecture without its last layer; `attach` gives it a head.

    Subclasses set `feature_dim` (D) and define `features`; `init_weights` is for architectures with
    an initialisation of their own.
    """

    feature_dim: int
    head: Head
    precision: str = "fp32"  # of `features`; the head computes in float32
    side: int = 0  # to which `features` brings images first, in pixels; 0: they stay as they are
    notes: tuple[str, ...] = ()  # said when a run starts

    def __init_subclass__(cls) -> None:
        """Let `features` of every architecture compute in the network's precision."""
        super().__init_subclass__()
        if "features" in vars(cls):
            cls.features = in_own_precision(cls.features)  # type: ignore[method-assign]

    def features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images → (N, D) penultimate activations."""
        raise NotImplementedError(f"{type(self).__name__} must define features(x)")

    def forward(self, x: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, C, H, W) images → (N, n_classes) logits; `task_id` (N,) is read by per-task heads only."""
        return self.head(self.features(x), task_id)

    def narrower(self, n_parts: int) -> "Backbone":
        """A new network with one of `n_parts` equal shares of every layer, for a method that has several."""
        raise UserError(f"a {type(self).__name__} has no narrower form: use --backbone cnn, resnet18 or mlp")

    @functools.cached_property
    def mixes_samples(self) -> bool:
        """Whether a sample's training features depend on the other samples of its pass: batch norm."""
        return any(isinstance(module, BatchNorm) for module in self.modules())

    def init_weights(self) -> None:
        """Initialise all weights once the head is attached; by default PyTorch's initialisation stays."""

    def attached(self) -> dict[str, Tensor]:
        """What learns beside pre-trained weights, by name; a file of these lacks it. Nothing by default."""
        return {}

    def attach(self, head: Head) -> "Backbone":
        """Make `head` the network's classifier; returns the network."""
        self.head = head
        self.init_weights()
        return self


class NetworkTarget(Protocol):
    """What a network must know of the benchmark that it is built for."""

    scenario: str
    input_shape: tuple[int, ...]  # of a sample: an image (C, H, W), or a vector (D,)
    n_classes: int
    device: torch.device

    @property
    def tasks(self) -> Sequence[StreamTask]:
        """The tasks, each with its classes."""


def build_network(name: str, options: OptionSet, benchmark: NetworkTarget, seed: int) -> Backbone:
    """The network for a benchmark: backbone `name` with a shared head or one per task.

    The weights depend on `seed` alone, whatever was drawn before.
    """
    shape = benchmark.input_shape
    refuse_vectors(name, shape)
    refuse_beyond_memory(name, options, shape, benchmark.device)
    with seeding.isolated(seed, "init"):
        backbone = registry.load("backbones", name).build(options, shape, label(name))
        if benchmark.scenario == "task-il":
            head: Head = TaskHeads(backbone.feature_dim, [task.classes for task in benchmark.tasks])
        else:
            head = SharedHead(backbone.feature_dim, benchmark.n_classes)
        network = backbone.attach(head)
    return network.to(benchmark.device, memory_format=layout(network))


def refuse_vectors(name: str, input_shape: tuple[int, ...]) -> None:
    """Raise `UserError` for samples (D,) and a network that takes images alone."""
    takes_them = getattr(registry.load("backbones", name), "TAKES_VECTORS", False)
    if len(input_shape) == 1 and not takes_them:
        raise UserError(
            f"--backbone {name} takes images, and samples are vectors of {input_shape[0]}: use mlp"
        )


def refuse_beyond_memory(
    name: str, options: OptionSet, input_shape: tuple[int, ...], device: torch.device | str
) -> None:
    """Raise `UserError` for a network whose weights and gradients take more than all memory.

    It is built on the device "meta", which allocates nothing; default options are not beyond sense.
    """
    if options == type(options)() or getattr(options, "pretrained", False):
        return
    given = ", ".join(
        f"--{field.name} {getattr(options, field.name)}"
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    )
    try:
        with torch.device("meta"), seeding.isolated(0, "size"):
            network = registry.load("backbones", name).build(options, input_shape, label(name))
    except UserError:
        raise
    except Exception:  # a plugin that cannot be built without memory: it is not checked
        return
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    devices.refuse_beyond_memory(f"backbone {name} with {given}", 8 * n_weights, torch.device(device))


def layout(network: nn.Module) -> torch.memory_format:
    """The memory layout that a network's convolutions are fastest in; their outputs follow the weights'.

    oneDNN (torch 2.15, AVX2) writes outside its memory in pointwise convolutions of very few channels in
    channels-last order; such networks stay as they are.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    sound = all(c.in_channels >= 8 for c in convolutions if c.kernel_size == (1, 1))
    return torch.channels_last if convolutions and sound else torch.contiguous_format


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    """`10x8`, `scalar`, or `none` for a tensor that is not there."""
    return ("x".join(map(str, tensors[name].shape)) or "scalar") if name in tensors else "none"


def load_weights(
    network: Backbone, state: dict[str, torch.Tensor], attached: dict[str, torch.Tensor] | None = None
) -> None:
    """Load weights by name; a mismatch is one error that says what differs.

    attached: what the file may lack, such as `network.attached()`; it gets these values then.
    """
    current, state = network.state_dict(), {**(attached or {}), **state}
    wrong = [k for k in current.keys() | state.keys() if k not in current or k not in state]
    wrong += [k for k in current.keys() & state.keys() if current[k].shape != state[k].shape]
    if wrong:
        listed = ", ".join(
            f"{name} ({_shape(current, name)} here, {_shape(state, name)} there)"
            for name in sorted(wrong, key=str)[:3]
        )
        raise UserError(
            f"the weights belong to another network; {len(wrong)} tensors differ: {listed}; give the "
            "flags of network and method that they were made with"
        )
    network.load_state_dict(state)
