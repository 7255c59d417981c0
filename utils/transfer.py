"""Transfer: small host values go to the training device, and the host does not wait for the copy.

`torch.tensor(values, device="cuda")` and `.to("cuda")` of ordinary memory return only when everything that
is queued on the device is done. From pinned memory the copy is queued like a kernel; PyTorch keeps the pinned
block until it has been read.

A step that is captured as a CUDA graph (utils/training/step_graph.py) runs on the host once. What the host
decides in every step anew, such as which samples are replayed, goes through `decide`: the graph reads it from
one block of device memory, and `HostPlan` calls the same functions in the same order before each replay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def send(
    values: Tensor | Sequence[object], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Host values, a CPU tensor or (nested) lists of numbers, as a tensor on the device, without waiting."""
    if _collecting is not None:
        raise RuntimeError("a captured step sends a host value, which would be the same at every replay")
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda" or host.device.type == "cuda":
        return host.to(device, dtype)
    return host.to(dtype or host.dtype).pin_memory().to(device, non_blocking=True)


class HostPlan:
    """The host's decisions of one captured step, in the order in which the step asks for them."""

    ALIGNMENT = 16  # bytes: each decision begins at a multiple of it

    def __init__(self, device: torch.device, n_bytes: int = 1 << 20):
        # the captured step reads it; zeros, which are valid indices, before the first delivery
        self.block = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
        self.draws: list[Callable[[], Tensor]] = []
        self.slices: list[Tensor] = []  # the part of the block for each decision
        self.values: list[Tensor] = []  # drawn for the next step, still on the host
        self.kept: list[Tensor] = []
        self.end = 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside, `decide` asks this plan; the step is captured here."""
        global _collecting
        _collecting = self
        try:
            yield
        finally:
            _collecting = None

    def add(self, draw: Callable[[], Tensor]) -> Tensor:
        """The part of the block that will hold what `draw` decides; its first decision is made now."""
        value = draw()
        start, n_bytes = self.end, value.numel() * value.element_size()
        self.end += -(-n_bytes // self.ALIGNMENT) * self.ALIGNMENT
        if self.end > len(self.block):
            raise ValueError(f"the host's decisions of a step take more than {len(self.block):,} bytes")
        target = self.block[start : start + n_bytes].view(value.dtype).view(value.shape)
        self.draws.append(draw)
        self.slices.append(target)
        self.values.append(value)
        return target

    def deliver(self) -> None:
        """Send the decisions of the next step: those made while it was captured, later new ones."""
        values = self.values or [draw() for draw in self.draws]
        self.values = []
        host = torch.empty(self.end, dtype=torch.uint8)
        for value, target in zip(values, self.slices, strict=True):
            if value.shape != target.shape or value.dtype != target.dtype:
                kinds = f"{tuple(target.shape)} {target.dtype}, now {tuple(value.shape)} {value.dtype}"
                raise ValueError(f"a decision of the captured step changed its form: it was {kinds}")
            start = target.storage_offset() * target.element_size()
            n_bytes = value.numel() * value.element_size()
            host[start : start + n_bytes].view(value.dtype).view(value.shape).copy_(value)
        self.block[: self.end].copy_(host.pin_memory(), non_blocking=True)


_collecting: HostPlan | None = None  # while a step is captured: nobody else acts then


def kept(tensor: Tensor) -> Tensor:
    """The tensor itself, from a cache: a step that is captured now keeps it, whatever the cache forgets."""
    if _collecting is not None:
        _collecting.kept.append(tensor)
    return tensor


def decide(draw: Callable[[], Tensor], device: torch.device | str) -> Tensor:
    """What `draw` returns, a CPU tensor, on the device; in a captured step it is called before every replay.

    So `draw` itself must read and change what it depends on, generators and counters, each time it is called,
    and return the same shape and type every time.
    """
    if _collecting is not None:
        return _collecting.add(draw)
    value = draw()
    return value if value.device == device else send(value, device)
