"""Timing: what the speed programs share: figures, random data, alternating rounds, the machine's name."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engram.datasets.sources import Source


@dataclass(frozen=True)
class Figure:
    """A line of a benchmark: what was measured, in words for people and in numbers for programs.

    `ratio`, where there is one, is what was compared: above 1 the first side of the name takes longer.
    """

    name: str
    text: str
    numbers: dict[str, float]


def random_source(n_train: int, n_test: int, shape: tuple[int, ...], n_classes: int = 10) -> Source:
    """Random images with the classes in turn."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_train + n_test, *shape), dtype=torch.uint8, generator=draws)
    y = torch.arange(n_train + n_test) % n_classes
    names = tuple(map(str, range(n_classes)))
    return Source("random", images[:n_train], y[:n_train], images[n_train:], y[n_train:], names)


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, ...]:
    """(median ours, median theirs, median of the round-wise ratios), after one warm-up of each."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def process_bytes(name: str) -> int:
    """Bytes of this process's memory, as Linux counts them: RssAnon, RssFile, VmHWM (the peak), ..."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"{name}: memory is measured by Linux's /proc, which is not here")


def reset_peak(device: torch.device) -> None:
    """Forget the peak of the memory so far: the device's, on a CPU the process's (VmHWM)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc_pid_clear_refs(5)


class Names(tuple[str, ...]):
    """The names that a command line may list, also none: Python 3.11 looks the empty list up among them."""

    def __contains__(self, name: object) -> bool:
        return name == [] or super().__contains__(name)


def cpu_name() -> str:
    """The processor's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
