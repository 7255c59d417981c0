"""Where a run computes: its device, the versions of what numbers depend on, its commit, its peak memory."""

import platform
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import torch

from engram.utils import distributed
from engram.utils.config.version import git_state
from engram.utils.training import interleaved


@dataclass(frozen=True)
class Environment:
    """One process that took steps of a run, or several of them joined."""

    git_commit: str | None = None
    device: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    precision: str | None = None  # fp32, tf32 or bf16; None in checkpoints from before it was noted
    git_dirty: bool | None = None  # whether the code had changes since the commit; None where nobody looked

    @classmethod
    def of_this_process(cls, device: torch.device, precision: str) -> "Environment":
        """The environment of a process that trains on `device` in a resolved precision."""
        code = git_state()
        return cls(code.commit, device_name(device), versions(), precision, code.dirty)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Environment":
        """The environment that a checkpoint holds."""
        later = state.get("precision"), state.get("git_dirty")
        return cls(state["git_commit"], state["device"], state["versions"], *later)


def join(environments: list[Environment]) -> Environment:
    """One environment for several: each thing as the processes had it, `1.0, 1.1` where they differ."""
    packages = dict.fromkeys(package for e in environments for package in e.versions)
    return Environment(
        _joined(e.git_commit for e in environments),
        _joined(e.device for e in environments),
        {package: _joined(e.versions.get(package) for e in environments) for package in packages},
        _joined(e.precision for e in environments),
        _any(e.git_dirty for e in environments),
    )


def _joined(values: Iterable[str | None]) -> str | None:
    """The distinct values that are not None, in their order; None without any."""
    return ", ".join(dict.fromkeys(value for value in values if value)) or None


def _any(values: Iterable[bool | None]) -> bool | None:
    """Whether one of them is true; None where none is and not all are known."""
    given = set(values)
    return True if True in given else False if given == {False} else None


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that CUDA allocated, or the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    """`cuda:0 (NVIDIA H100)` or `cpu (x86_64, 2 threads)`, preceded by how many share it or work as one."""
    prefix = f"{distributed.world_size()} x " if distributed.world_size() > 1 else ""
    prefix = f"shared by {interleaved.n_runs()} runs: " if interleaved.n_runs() > 1 else prefix
    if device.type == "cuda":
        return f"{prefix}{device} ({torch.cuda.get_device_name(device)})"
    return f"{prefix}cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str | None]:
    """The versions of Python and of the installed packages that numbers depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str | None]:
    """Those of `versions`: a process reads the packages' files once, which take as long as a tiny task."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "scipy", "scikit-learn"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
