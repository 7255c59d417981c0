"""A pretended CUDA graph: it records the operations of a step on the pretended device and replays them.

    with PretendedDevice() as gpu, pretended_graphs(gpu):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.replay()

What a true graph freezes is frozen here too: Python numbers and branches, what the host drew or counted,
which tensors are read and written. As there, a capture computes nothing: what its operations wrote, and how
far they moved the generators, is undone when it ends. A replay calls every operation again on the recorded
tensors, copies what it returns into the memory of what it returned at the capture, and draws random numbers
anew. What a capture forbids raises: host reads, copies from the host's memory, unregistered generators, an
optimizer that is not capturable. A replay raises when memory that the step reads has been freed, or when a
size has changed.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tests.pretended_device import CUDA, PretendedDevice, allocates_only, storage_id, tensors_in, where

RANDOM = torch.Tag.nondeterministic_seeded


class CaptureError(RuntimeError):
    """What a CUDA graph would refuse, or would compute wrongly without saying so."""


class Operation(NamedTuple):
    """One recorded call; tensors are aliases of those of the capture."""

    function: Any
    args: tuple
    kwargs: dict
    results: list[
        Tensor | None
    ]  # whose memory a replay writes; None: a view, or an argument changed in place


class PretendedGraph:
    """This class stands for `torch.cuda.CUDAGraph`."""

    def __init__(self, gpu: PretendedDevice):
        self.gpu, self.operations = gpu, []
        self.generators: set[int] = set()  # that are registered
        self.is_captured = False
        self.made: set[int] = set()  # storages that the capture made
        self.before: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}  # the others, and what they held
        self.held: Counter[int] = Counter()  # aliases that this graph holds of each storage

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Allow draws from the generator, which must be the device's."""
        assert generator.device.type == "cuda", "a generator of the host"
        self.generators.add(generator._cdata)

    def reset(self) -> None:
        """Forget the capture and the generators."""
        self.__init__(self.gpu)

    def replay(self) -> None:
        """Call every recorded operation again."""
        if not self.is_captured:
            raise CaptureError("replayed before it was captured")
        self._check_memory()
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for operation in self.operations:
                _repeat(operation)
        self.gpu.launches["graph"] += 1

    def _check_memory(self) -> None:
        """Raise where nobody but this graph holds a tensor that existed before the capture."""
        for key, (storage, _) in self.before.items():
            ours = self.held[key] + 1  # `storage` itself
            if torch._C._storage_Use_Count(storage._cdata) <= ours:
                raise CaptureError(f"{storage.nbytes()} bytes that the step reads have been freed")

    # --- while capturing -------------------------------------------------------------------------

    def alias(self, tensor: Tensor) -> Tensor:
        """The tensor without its part in autograd; a number in host memory is frozen."""
        if tensor not in self.gpu.on_device:
            return tensor.clone()
        self.held[storage_id(tensor)] += 1
        return tensor.detach()

    def see(self, tensor: Tensor) -> None:
        """Remember the contents of memory from before the capture, which an operation may change."""
        key = storage_id(tensor)
        if tensor in self.gpu.on_device and key not in self.made and key not in self.before:
            storage = tensor.untyped_storage()
            self.before[key] = storage, _bytes(storage).clone()

    def undo(self) -> None:
        """Put everything back as it was before the capture, which computes nothing."""
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            for storage, contents in self.before.values():
                _bytes(storage).copy_(contents)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _repeat(operation: Operation) -> None:
    made = tree_leaves(operation.function(*operation.args, **operation.kwargs))
    for result, new in zip(operation.results, made, strict=True):
        if result is None:
            continue
        if result.shape != new.shape:
            sizes = f"{tuple(result.shape)}, now {tuple(new.shape)}"
            raise CaptureError(f"a size depends on data: {operation.function} made {sizes}")
        result.copy_(new)


class _Recorder(TorchDispatchMode):
    """Notes every operation on device tensors, after it was carried out once."""

    def __init__(self, graph: PretendedGraph):
        super().__init__()
        self.graph, self.gpu = graph, graph.gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operands = tensors_in(args, kwargs)
        beside_device = any(t in self.gpu.on_device for t in operands)
        if beside_device:
            self._check_host(func, operands)
        for tensor in operands:
            self.graph.see(tensor)
        made = self._carry_out(func, args, kwargs)
        results = tensors_in(made)
        on_device = any(t in self.gpu.on_device for t in results)
        if on_device and operands and not beside_device:
            raise CaptureError(f"a copy from host memory, which the graph would read again, at {where()}")
        if on_device or beside_device:
            memory = {storage_id(t) for t in operands}
            new = [storage_id(t) not in memory for t in results]
            self.graph.made |= {storage_id(t) for t, is_new in zip(results, new, strict=True) if is_new}
            if not allocates_only(func) and (any(new) or not func.is_view):
                self._record(func, args, kwargs, memory, made)
        return made

    def _check_host(self, func, operands: list[Tensor]) -> None:
        if any(t.dim() for t in operands if t not in self.gpu.on_device):
            raise CaptureError(f"{func}: reads host memory, which may change or be freed, at {where()}")

    def _carry_out(self, func, args, kwargs):
        """Call the operation; generators stay where they are, as in a true capture."""
        if RANDOM not in func.tags:
            return func(*args, **kwargs)
        if not self._on_device(args):  # drawn once, by the host
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator._cdata not in self.graph.generators:
            raise CaptureError(f"{func}: an unregistered generator at {where()}")
        generator = generator or torch.default_generator
        state = generator.get_state()
        made = func(*args, **kwargs)
        generator.set_state(state)
        return made

    def _on_device(self, args) -> bool:
        target = self.gpu._target
        return (target is not None and target.type == "cuda") or any(
            t in self.gpu.on_device for t in tensors_in(args)
        )

    def _record(self, func, args, kwargs, memory: set[int], made) -> None:
        graph = self.graph

        def alias(value):
            return graph.alias(value) if isinstance(value, Tensor) else value

        results = [
            alias(t) if isinstance(t, Tensor) and storage_id(t) not in memory else None
            for t in tree_leaves(made)
        ]
        graph.operations.append(Operation(func, tree_map(alias, args), tree_map(alias, kwargs), results))


@contextlib.contextmanager
def _capture(gpu: PretendedDevice, graph: PretendedGraph, **_: object) -> Iterator[None]:
    """This context stands for `torch.cuda.graph`."""
    stream = mock.Mock(is_capturing=lambda: True)
    with (
        mock.patch.object(torch.accelerator, "current_accelerator", lambda *_, **__: CUDA),
        mock.patch.object(torch.accelerator, "current_stream", lambda *_, **__: stream),
        _Recorder(graph),
        gpu.capturing(),
    ):
        try:
            yield
        except BaseException:
            graph.undo()
            graph.reset()
            raise
    graph.undo()
    graph.is_captured = True


@contextlib.contextmanager
def pretended_graphs(gpu: PretendedDevice) -> Iterator[None]:
    """Inside, `torch.cuda.CUDAGraph` and `torch.cuda.graph` record on the pretended device."""
    with (
        mock.patch.object(torch.cuda, "CUDAGraph", lambda *_, **__: PretendedGraph(gpu)),
        mock.patch.object(torch.cuda, "graph", lambda graph, **kwargs: _capture(gpu, graph, **kwargs)),
    ):
        yield
