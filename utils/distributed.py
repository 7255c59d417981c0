"""Distributed: the primitives of one run in several processes (`torchrun`), which compute as one would.

Every process holds the data, the memory and the method, draws the same numbers and takes the same steps; only
the network's rows are sharded over them (`backbones/row_parallel.py`, which says why). The main process, rank
0, alone reads losses, handles signals, writes and prints; the others follow it
(`utils/training/distributed_trainer.py`) and end when it ends. The backend is gloo on CPUs and NCCL on GPUs,
of which each process has one. Without torchrun there is one process, whose shard is all rows, and barriers
and sums do nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from engram.utils import device
from engram.utils.errors import UserError


class LostProcessError(UserError):
    """Another process of the run has ended; that process's own message says why."""


def world_size() -> int:
    """The number of processes that compute this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among all of them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints: rank 0."""
    return rank() == 0


def local_rank() -> int:
    """This process's number among those on its machine; defined before the process group exists."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_device(name: str) -> str:
    """The name of the device that `--device` means for this process: each has its own GPU of the machine."""
    if world_size() == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise UserError(f"--device {name}: under torchrun each process has its own GPU; say cuda, or cpu")
    n_local, n_devices = int(os.environ.get("LOCAL_WORLD_SIZE", world_size())), torch.cuda.device_count()
    if n_local > n_devices:
        raise UserError(
            f"torchrun started {n_local} processes on this machine, which has {n_devices} CUDA devices: give "
            f"--nproc_per_node {n_devices} at most, or --device cpu"
        )
    return f"cuda:{local_rank()}"


@contextmanager
def process_group(name: str) -> Iterator[torch.device]:
    """Inside, the processes that torchrun has started are one group; yields this process's device.

    name: the value of `--device`.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield device.choose(name)
        return
    on_cpu = name == "cpu" or not torch.cuda.is_available()
    dist.init_process_group("gloo" if on_cpu else "nccl")
    try:
        chosen = device.choose(local_device(name))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield chosen
    finally:
        dist.destroy_process_group()


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Run the block in one process of each machine first: the others find what it has downloaded."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def barrier() -> None:
    """Wait until all processes have called this."""
    if world_size() > 1:
        _communicate(dist.barrier)


def row_shard(n: int) -> slice:
    """This process's shard of n rows: consecutive ones; shards differ by one row at most."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def all_reduce_sum(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, which every process receives; all in a single message."""
    tensors = list(tensors)
    if world_size() == 1:
        return tensors
    message = torch.cat([t.flatten() for t in tensors])
    _communicate(dist.all_reduce, message)
    sums = message.split([t.numel() for t in tensors])
    return [flat.view_as(t) for flat, t in zip(sums, tensors, strict=True)]


def _communicate(collective: Callable[..., object], *tensors: Tensor) -> None:
    """Call a collective operation; raises `LostProcessError` if another process is gone."""
    try:
        collective(*tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise LostProcessError(
            f"another process of this run has ended, its message says why ({reason})"
        ) from None
