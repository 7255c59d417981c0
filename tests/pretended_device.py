"""A pretended CUDA device: tensors in CPU memory that say they are on CUDA, with CUDA's rules.

    with PretendedDevice() as gpu:       # inside, the program sees one CUDA device
        method.observe(batch)
    gpu.waits                            # what would have made the host wait for the device, and where
    gpu.launches                         # how many kernels would have been queued, by operation

Values are computed on the CPU and are real. Two modes of PyTorch work together. `_Claims` sees the calls from
Python: it answers `.device`, lets factories and `.to()` allocate in one of the two memories, and refuses what
reads device memory from the host. `_Rules` sees every ATen operation, those of the backward pass too: it
marks what an operation on device tensors returns, and refuses operands on two devices. An operation raises
`DeviceError` where CUDA would raise. What only a real device can show (kernels, streams, races, numbers) is
not shown here.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TRUE_GENERATOR, TRUE_AUTOCAST = torch.Generator, torch.autocast
GROUP_TENSORS = "_group_tensors_by_device_and_dtype"
TRUE_GROUP = getattr(torch._C, GROUP_TENSORS)
aten = torch.ops.aten

# Operations that read a value back before they can return, on CUDA.
READS = {
    "_local_scalar_dense": "a value is read (item, int, float, bool)",
    "is_nonzero": "a value is read (bool)",
    "equal": "torch.equal",
    "nonzero": "nonzero: the number of results is read",
    "argwhere": "nonzero: the number of results is read",
    "masked_select": "masked_select: the number of results is read",
    "_unique2": "unique: the number of results is read",
    "unique_dim": "unique: the number of results is read",
    "unique_consecutive": "unique: the number of results is read",
    "bincount": "bincount: the largest value is read",
    "multinomial": "multinomial: its argument is checked",
    "_linalg_check_errors": "linalg: errors are read",
    "_linalg_eigh": "linalg: errors are read",
    "_linalg_svd": "linalg: errors are read",
    "linalg_lstsq": "linalg: errors are read",
}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten._index_put_impl_.default}
INDEXING |= {aten.index_put_.default, aten.index_put.default}
# Take no tensor of 0 dimensions from another device, unlike elementwise operations.
STRICT = {
    "index_select",
    "gather",
    "scatter",
    "index_copy_",
    "index_add_",
    "cat",
    "stack",
    "mm",
    "addmm",
    "bmm",
}
STRICT |= {"embedding", "_foreach_add_", "_foreach_mul_"}
FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}
MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu}


class DeviceError(RuntimeError):
    """What CUDA would refuse."""


class Storages:
    """A set of tensors' storages; views share one. It forgets storages that were freed."""

    def __init__(self) -> None:
        self._references: dict[int, StorageWeakRef] = {}
        self._n_added = 0

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage in."""
        reference = StorageWeakRef(_plain(tensor).untyped_storage())
        self._references[reference.cdata] = reference
        self._n_added += 1
        if self._n_added % 20_000 == 0:
            self._references = {k: r for k, r in self._references.items() if not r.expired()}

    def __contains__(self, tensor: Tensor) -> bool:
        return storage_id(tensor) in self._references


class PretendedGenerator(TRUE_GENERATOR):
    """A generator that says which device it is of and draws on the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> "PretendedGenerator":
        self = super().__new__(cls, "cpu")
        self.claimed = CUDA if torch.device(device).type == "cuda" else CPU
        return self

    def __init__(self, device: torch.device | str = "cpu"):
        pass

    @property
    def device(self) -> torch.device:
        """The device that was asked for."""
        return self.claimed


class PretendedDevice(contextlib.ExitStack):
    """Inside, PyTorch has one CUDA device. Entered by one thread at a time; storages are remembered."""

    on_device = Storages()  # of the process: what a module caches outlives one use
    pinned = Storages()

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()  # (what the host waited for, file:line)
        self.launches: Counter[str] = Counter()
        self._watching = True
        self._waits_raise = False  # torch.cuda.set_sync_debug_mode
        self._captures = False  # a graph is being captured: tests/pretended_graph.py
        # of the call from Python under way: its name, where its result belongs, whether it copies
        self._call = ""
        self._target: torch.device | None = None
        self._moving = False

    def __enter__(self) -> "PretendedDevice":
        super().__enter__()
        replaced = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_name": lambda *_: "pretended",
            "get_device_capability": lambda *_: (9, 0),
            "get_device_properties": lambda *_: mock.Mock(total_memory=80 << 30, multi_processor_count=132),
            "is_bf16_supported": lambda *_, **__: True,
            "mem_get_info": lambda *_: (70 << 30, 80 << 30),
            "max_memory_allocated": lambda *_: 0,
            "memory_allocated": lambda *_: 0,
            "memory_reserved": lambda *_: 0,
            "reset_peak_memory_stats": lambda *_: None,
            "empty_cache": lambda: None,
            "set_sync_debug_mode": self._set_sync_debug_mode,
            "synchronize": lambda *_: self.wait("torch.cuda.synchronize"),
            "is_current_stream_capturing": lambda: self._captures,
            "_lazy_init": lambda: None,
            "Stream": lambda *_, **__: mock.MagicMock(),
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda *_: mock.MagicMock(),
        }
        for name, value in replaced.items():
            self.enter_context(mock.patch.object(torch.cuda, name, value))
        self.enter_context(mock.patch.object(torch._C, GROUP_TENSORS, self._group))
        self.enter_context(mock.patch.object(torch, "Generator", PretendedGenerator))
        self.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        self.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", lambda *_, **__: None))
        self.enter_context(_Rules(self))
        self.enter_context(_Claims(self))
        return self

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        """Inside, another thread sees the device too: PyTorch's modes belong to a thread.

        What is replaced in `torch.cuda` is the whole process's; two threads that each replaced it, and put it
        back in another order, would leave it replaced.
        """
        with _Rules(self), _Claims(self):
            yield

    def wait(self, what: str) -> None:
        """Count one operation that blocks the host, or raise, as set by `torch.cuda.set_sync_debug_mode`."""
        if self._captures:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} at {where()}")
        if self._waits_raise:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what} at {where()}")
        if self._watching:
            self.waits[what, where()] += 1

    def _set_sync_debug_mode(self, mode: str) -> None:
        self._waits_raise = mode == "error"

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Inside, nothing is counted: the preparations of a test."""
        before, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = before

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Inside, an operation that waits is refused."""
        self._captures = True
        try:
            yield
        finally:
            self._captures = False

    def _group(self, lists: list[list[Tensor]], *rest: object) -> dict:
        """Lists of tensors by device and type, for the foreach functions: by the device that they claim."""
        return {
            (CUDA if grouped[0][0] in self.on_device else device, dtype): (grouped, rows)
            for (device, dtype), (grouped, rows) in TRUE_GROUP(lists, *rest).items()
        }

    @contextlib.contextmanager
    def _result_on(self, device: torch.device | None, moving: bool = False) -> Iterator[None]:
        before = self._target, self._moving
        self._target, self._moving = device, moving
        try:
            yield
        finally:
            self._target, self._moving = before


class _Autocast(TRUE_AUTOCAST):
    """Mixed precision for the memory in which the tensors really are."""

    def __init__(self, device_type: str, *args: object, **kwargs: object):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _pinned_copy(gpu: PretendedDevice, tensor: Tensor, _: object) -> Tensor:
    copied = tensor.clone()
    gpu.pinned.add(copied)
    return copied


# What a tensor says of itself; the function that was called is the last argument.
ANSWERS = {
    torch.Tensor.device.__get__: lambda gpu, t, get: CUDA if t in gpu.on_device else get(t),
    torch.Tensor.is_cuda.__get__: lambda gpu, t, _: t in gpu.on_device,
    torch.Tensor.is_cpu.__get__: lambda gpu, t, _: t not in gpu.on_device,
    torch.Tensor.get_device: lambda gpu, t, _: 0 if t in gpu.on_device else -1,
    torch.Tensor.is_pinned: lambda gpu, t, _: t in gpu.pinned,
    torch.Tensor.pin_memory: _pinned_copy,
    torch.Tensor.record_stream: lambda gpu, t, _: None,
}


class _Claims(TorchFunctionMode):
    """Calls from Python: devices in arguments and answers, and copies between the two memories."""

    def __init__(self, gpu: PretendedDevice):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        here = self.gpu.on_device
        for foreign in types:
            if not issubclass(foreign, Tensor):  # a class of the project, which shall see claims too
                with self:
                    return foreign.__torch_function__(func, types, args, kwargs)
        if func in ANSWERS:
            return ANSWERS[func](self.gpu, args[0], func)
        if func in MOVES:
            return self._move(func, *args, **kwargs)
        if args and isinstance(args[0], Tensor) and args[0] in here:
            if func in (torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr):
                raise DeviceError(f"{func.__name__}() of a CUDA tensor at {where()}")
            if func is torch.Tensor.tolist:
                self.gpu.wait("values are read (tolist)")
            if func is torch.Tensor.__deepcopy__:
                copied = func(*args, **kwargs)
                here.add(copied)
                return copied
        return self._make(func, args, kwargs)

    def _make(self, func, args, kwargs):
        """Any other call: a factory's result belongs on the device that was asked for."""
        gpu = self.gpu
        pinned = kwargs.pop("pin_memory", False)
        asked = kwargs.pop("device", None)
        if asked is not None:
            asked, kwargs["device"] = _device(asked), "cpu"
        from_host = func in FROM_DATA and not (
            args and isinstance(args[0], Tensor) and args[0] in gpu.on_device
        )
        if from_host and asked is None:
            asked = CPU
        self._check_generator(func, kwargs.get("generator"), asked, args)
        if from_host and asked.type == "cuda":
            gpu.wait(f"torch.{func.__name__}(host data, device=cuda): a blocking copy")
            with gpu._result_on(CPU):
                made = func(*args, **kwargs).clone()
            gpu.on_device.add(made)
            return made
        if asked is None:  # beside device tensors, what an operation allocates is on the device
            beside = tensors_in(args, kwargs)
            asked = CUDA if any(t in gpu.on_device for t in beside) else gpu._target
        before = gpu._call, gpu._target
        gpu._call, gpu._target = getattr(func, "__name__", ""), asked
        try:
            made = func(*args, **kwargs)
        finally:
            gpu._call, gpu._target = before
        if pinned:
            gpu.pinned.add(made)
        return made

    def _check_generator(self, func, generator, asked, args) -> None:
        if not isinstance(generator, PretendedGenerator):
            return
        first = next((a for a in args if isinstance(a, Tensor)), None)
        filled = asked or (CUDA if first is not None and first in self.gpu.on_device else CPU)
        if generator.device.type != filled.type:
            kinds = f"a {generator.device.type} generator for a {filled.type} tensor"
            raise DeviceError(f"{func.__name__}: {kinds} at {where()}")

    def _move(self, func, tensor: Tensor, *rest, **kwargs) -> Tensor:
        """`.to()`, `.cuda()`, `.cpu()`: a copy if the tensor lies in the other memory."""
        gpu = self.gpu
        target, dtype, non_blocking, copy, layout = self._destination(func, list(rest), kwargs)
        source = CUDA if tensor in gpu.on_device else CPU
        dtype = tensor.dtype if dtype is None else dtype
        if target is None or target.type == source.type:
            with gpu._result_on(source):
                return torch.Tensor.to(tensor, dtype, copy=copy, **layout)
        if target.type == "cpu":
            gpu.wait(".to(cpu)" if not non_blocking else ".to(cpu, non_blocking): unsafe without an event")
        elif tensor.numel() and not (non_blocking and tensor in gpu.pinned):
            gpu.wait(".to(cuda): a blocking copy" + (" of pageable memory" if non_blocking else ""))
        with gpu._result_on(target, moving=True):
            return torch.Tensor.to(tensor, dtype, copy=True, **layout)

    def _destination(self, func, rest, kwargs):
        """(device, dtype, non_blocking, copy, memory format as keywords) of a call's arguments."""
        layout = {"memory_format": kwargs["memory_format"]} if kwargs.get("memory_format") is not None else {}
        if func is torch.Tensor.cpu:
            return CPU, None, False, False, layout
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        if func is torch.Tensor.cuda:
            device = CUDA
            rest = [None, *rest[1:]] if rest and not isinstance(rest[0], bool) else [None, *rest]
        if rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
            device, dtype = CUDA if other in self.gpu.on_device else CPU, other.dtype
        elif rest and isinstance(rest[0], torch.dtype):
            dtype = rest.pop(0)
        elif rest:
            device = rest.pop(0) or device
            if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
                dtype = rest.pop(0)
        non_blocking = bool(rest.pop(0)) if rest else kwargs.get("non_blocking", False)
        copy = bool(rest.pop(0)) if rest else kwargs.get("copy", False)
        return None if device is None else _device(device), dtype, non_blocking, copy, layout


class _Rules(TorchDispatchMode):
    """ATen operations: operands on one device, results on it, and what waits for a value."""

    def __init__(self, gpu: PretendedDevice):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        gpu, name = self.gpu, func._schema.name.split("::")[1]
        operands = tensors_in(args, kwargs)
        on_device = [t in gpu.on_device for t in operands]
        if any(on_device) and not gpu._moving:
            if not all(on_device):
                self._check_mixed(func, name, args, operands, on_device)
            self._check_wait(func, name, args, kwargs)
            if gpu._watching and not _is_view(func):
                gpu.launches[name] += 1
        made = func(*args, **kwargs)
        if self._belongs_on_device(operands, any(on_device)):
            known = {storage_id(t) for t in operands}
            for tensor in tensors_in(made):
                if storage_id(tensor) not in known:
                    gpu.on_device.add(tensor)
        return made

    def _belongs_on_device(self, operands: list[Tensor], beside_device: bool) -> bool:
        """Whether a new result lies on the device: where it was asked for, else where the operands are."""
        target = self.gpu._target
        if target is not None and (not operands or self.gpu._moving):
            return target.type == "cuda"
        return beside_device if operands else False

    def _check_mixed(self, func, name, args, operands, on_device) -> None:
        """Operands in both memories: a copy or an index may be, numbers may be, anything else is an error."""
        gpu = self.gpu
        if func is aten.copy_.default:
            to_device = args[0] in gpu.on_device
            asynchronous = len(args) > 2 and args[2] and args[1] in gpu.pinned
            if not (to_device and asynchronous):
                gpu.wait("copy_ from the host: a blocking copy" if to_device else "copy_ to the host")
            return
        if name == "index_fill_" and gpu._call == "__setitem__":  # x[[0, 2]] = 1: the list goes to the device
            gpu.wait("indexing by a list: a blocking copy")
            return
        if func in INDEXING:
            index = [t for t in args[1] if t is not None]
            if args[0] in gpu.on_device and any(t not in gpu.on_device for t in index):
                gpu.wait("indexing by a host tensor: a blocking copy")
            elif args[0] not in gpu.on_device:
                raise DeviceError(f"{name}: an index on CUDA for a CPU tensor at {where()}")
            values = args[2] if len(args) > 2 else None
            if isinstance(values, Tensor) and values.dim() and values not in gpu.on_device:
                raise DeviceError(f"{name}: values on the CPU for a CUDA tensor at {where()}")
            return
        host = [t for t, here in zip(operands, on_device, strict=True) if not here]
        if name in STRICT or any(t.dim() for t in host):
            shapes = [
                f"{'cuda' if here else 'cpu'} {tuple(t.shape)}"
                for t, here in zip(operands, on_device, strict=True)
            ]
            raise DeviceError(f"aten::{name}: operands on two devices, {', '.join(shapes[:6])}, at {where()}")

    def _check_wait(self, func, name, args, kwargs) -> None:
        gpu = self.gpu
        if name in READS and gpu._call != "one_hot":  # which on CUDA does not look at its values
            gpu.wait(READS[name])
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            gpu.wait("repeat_interleave without output_size")
        elif func in INDEXING:
            index = [t for t in args[1] if t is not None]
            masks = [t for t in index if t.dtype in (torch.bool, torch.uint8)]
            fills = "put" in name and args[2].numel() == 1 and len(masks) == len(index) == 1  # masked_fill
            if masks and not fills:
                gpu.wait("indexing by a mask: the number of results is read")


def _device(device: torch.device | str | int) -> torch.device:
    return CUDA if isinstance(device, int) else torch.device(device)


def tensors_in(*values: object) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts; torch's `tree_leaves` takes half of a test's time."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += tensors_in(*value)
        elif isinstance(value, dict):
            tensors += tensors_in(*value.values())
    return tensors


def _plain(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def storage_id(tensor: Tensor) -> int:
    return _plain(tensor).untyped_storage()._cdata


def _is_view(func) -> bool:
    """Whether an operation launches nothing: its results are views of its operands, or it allocates only."""
    name = func._schema.name.split("::")[1]
    views = {"_unsafe_view", "_reshape_alias", "detach", "lift_fresh"}
    return func.is_view or name in views or name in {"empty_like", "new_empty"}


def allocates_only(func) -> bool:
    """Whether what an operation returns holds nothing yet."""
    return func._schema.name.split("::")[1].startswith(("empty", "new_empty"))


def _frames() -> Iterator[tuple[str, int, str]]:
    """(file, line, function) of the calls under way, innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back


def where() -> str:
    """file:line of the innermost call in the project."""
    for file, line, _ in _frames():
        path = Path(file)
        if file != __file__ and path.is_relative_to(ROOT) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{line}"
    return "outside the project"
