"""Device: which one a run uses, its memory, and how many CPU threads."""

import os
import re

import torch

from engram.utils.errors import UserError


def choose(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA when there is one."""
    given = name
    if name.isdecimal():
        name = f"cuda:{int(name)}"
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UserError(f"--device {given}: choose auto, cpu, cuda, cuda:N or N")
    device = torch.device(name)
    if device.type == "cuda":
        n_devices = torch.cuda.device_count()
        if (device.index or 0) >= n_devices:
            available = f"{n_devices} CUDA devices (cuda:0 to cuda:{n_devices - 1})"
            raise UserError(
                f"--device {name}: this machine has {available if n_devices else 'no CUDA device'}; "
                "try --device auto or cpu"
            )
        device = torch.device("cuda", device.index or 0)
    return device


def set_threads(requested: int, backbone: str) -> None:
    """Set the number of CPU threads: as requested, or by the size of the network's operations.

    Where nothing is requested, PyTorch takes the cores, or OMP_NUM_THREADS, for all but fully connected nets.

    A fully connected net on small batches runs up to 100x slower when threads contend for its tiny
    operations; convolutions profit from all cores.
    """
    if requested or backbone == "mlp":
        torch.set_num_threads(requested or 1)


def memory_bytes(device: torch.device) -> int:
    """All memory of a device, or of the machine for the CPU: more than that nothing on it can take."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_beyond_memory(what: str, n_bytes: int, device: torch.device) -> None:
    """Raise `UserError` for what takes more memory than there is, before any is taken."""
    if n_bytes > memory_bytes(device):
        raise UserError(
            f"{what}: takes {n_bytes / 1e9:,.0f} GB, all memory is {memory_bytes(device) / 1e9:,.0f} GB"
        )


class OneThread:  # as a generator it would take twice as long to enter, in every step
    """Inside, small memory-bound work runs on one CPU thread, however many the network uses.

    Indexing and normalising a few images gains nothing from threads and, on a machine that others
    use too, loses more than a factor of ten to their synchronisation.
    """

    def __enter__(self) -> None:
        self.n_threads = torch.get_num_threads()
        if self.n_threads != 1:
            torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        if self.n_threads != 1:
            torch.set_num_threads(self.n_threads)
