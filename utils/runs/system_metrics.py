"""What a run takes of the machine, under the names that MLflow's own system metrics have."""

import os
import time

import torch

from engram.utils.metrics.measurements import SYSTEM


class SystemMetrics:
    """Measures since its last measurement; costs microseconds and no synchronisation."""

    def __init__(self, device: torch.device):
        self.device = device
        self._cpu, self._wall = _cpu_seconds(), time.monotonic()

    def measure(self) -> dict[str, float]:
        """Of this process: memory, CPU time (100 %: one core), and what CUDA holds for it."""
        cpu, wall = _cpu_seconds(), time.monotonic()
        metrics = {
            f"{SYSTEM}process_memory_usage_megabytes": _resident_bytes() / 1e6,
            f"{SYSTEM}cpu_utilization_percentage": 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9),
        }
        self._cpu, self._wall = cpu, wall
        if self.device.type == "cuda":
            name = f"{SYSTEM}gpu_{self.device.index or 0}_memory_usage_megabytes"
            metrics[name] = torch.cuda.memory_reserved(self.device) / 1e6
        return metrics


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _resident_bytes() -> int:
    """Resident memory now, not its peak; 0 where the system has no /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
