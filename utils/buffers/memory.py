"""Memory: what trainer and methods may ask of every memory of samples, and what a memory is built from.

A memory is a set of slots on the training device. Each sample takes one slot of every field; a field is one
preallocated tensor, (slots, ...), made when the first sample arrives. The classes that fulfil these protocols
are in `reservoir.py`, `weighted_reservoirs.py`, `ring.py` and `exemplar_memory.py`.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

State = dict[str, Any]  # of a memory in a checkpoint: tensors, numbers, and dicts and lists of them


@runtime_checkable
class Memory(Protocol):
    """At most `size` samples. All its random decisions come from `generator`, which lives on the CPU."""

    size: int
    generator: torch.Generator
    device: torch.device
    fields: dict[str, Tensor]

    def __len__(self) -> int:
        """How many samples it holds."""

    def stored(self) -> dict[str, Tensor]:
        """All samples it holds, each field (len(self), ...); empty before the first sample."""

    def sample(self, n: int) -> dict[str, Tensor]:
        """Samples drawn uniformly from a memory that is not empty; each field (at most n, ...)."""

    def state_dict(self) -> State:
        """Contents, counters and the state of the generator, safe to load with `weights_only=True`."""

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state` was taken."""


@runtime_checkable
class StreamMemory(Memory, Protocol):
    """A memory that decides by itself which samples of the stream it stores, batch by batch."""

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...).

        y_on_host: the field `y` in host memory, where the caller has it: a memory that decides by labels
        need not wait for the device then.
        """


class GroupedStream(Protocol):
    """What a memory must know of a benchmark to give every class or task its share."""

    n_classes: int
    class_masks: Tensor  # (T, C) bool: the classes of each task

    @property
    def tasks(self) -> Sequence[Any]:
        """The tasks of the stream, in the order in which they are learned."""


class MemorySetup(Protocol):
    """What a memory is built from: a method's `Setup` fulfils it."""

    @property
    def benchmark(self) -> GroupedStream:
        """The stream whose samples will be stored."""

    @property
    def device(self) -> torch.device:
        """Where the samples are stored."""

    def generator(self, purpose: str) -> torch.Generator:
        """A random stream of the run, on the CPU; `purpose` names it."""


def n_rows(fields: dict[str, Tensor]) -> int:
    """How many samples a batch of fields (N, ...) holds."""
    return next(iter(fields.values())).shape[0]  # len() of a tensor takes three times as long
