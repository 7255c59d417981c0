"""Parallel: one run in several processes (`torchrun`), which compute as one process would.

Every process holds the data, the memory and the method, draws the same numbers and takes the same steps;
only the network's work is divided, by rows (`backbones/row_parallel.py` has that, and why). The first
process, rank 0, leads: it alone reads losses, heeds signals, writes and prints. The others follow it
(`distributed_trainer.py`) and end when it ends. gloo on a CPU, NCCL on GPUs, one for each process. Without
torchrun there is one process, whose share is everything, and nothing here does anything.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from engram.utils import device
from engram.utils.errors import UserError


class LostProcessError(UserError):
    """Another process of the run has ended; what it said tells why."""


def world_size() -> int:
    """How many processes compute this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this process writes and prints for the run."""
    return rank() == 0


def local_rank() -> int:
    """Which of those on this machine it is; known before it has joined the others."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_device(name: str) -> str:
    """The device that `--device` means for this process: of the GPUs of a machine, one each."""
    if world_size() == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise UserError(f"--device {name}: under torchrun each process has its own GPU; say cuda, or cpu")
    here, n_devices = int(os.environ.get("LOCAL_WORLD_SIZE", world_size())), torch.cuda.device_count()
    if here > n_devices:
        raise UserError(
            f"torchrun started {here} processes on this machine, which has {n_devices} CUDA devices: give "
            f"--nproc_per_node {n_devices} at most, or --device cpu"
        )
    return f"cuda:{local_rank()}"


@contextmanager
def process_group(name: str) -> Iterator[torch.device]:
    """Inside, the processes that torchrun has started are one run; gives the device of this process.

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
    """Inside, one process of each machine comes first: what it downloads the others find."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def barrier() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        _told(dist.barrier)


def row_shard(n: int) -> slice:
    """The rows that are this process's, of n: consecutive ones, as many as the others have, or one less."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def all_reduce_sum(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The sums over all processes of each process's tensors, the same in every one; a single message."""
    tensors = list(tensors)
    if world_size() == 1:
        return tensors
    message = torch.cat([t.flatten() for t in tensors])
    _told(dist.all_reduce, message)
    parts = message.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def _told(collective, *tensors: Tensor) -> None:
    """Do it with the other processes; if one is gone, say that rather than which socket closed."""
    try:
        collective(*tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise LostProcessError(
            f"another process of this run has ended, its message says why ({reason})"
        ) from None
