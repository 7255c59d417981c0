"""The ring memory of a method that stores equally many samples of every task (GEM, A-GEM, HAL)."""

from engram.utils.buffers.memory import MemorySetup
from engram.utils.buffers.ring import RingMemory
from engram.utils.errors import UserError


def ring_for(method: str, buffer_size: int, setup: MemorySetup) -> RingMemory:
    """A memory of `buffer_size` samples in total, shared equally by the benchmark's tasks.

    method: its name, for the `UserError` that a size smaller than the number of tasks raises.
    """
    n_tasks = len(setup.benchmark.tasks)
    if 0 < buffer_size < n_tasks:
        raise UserError(
            f"--buffer_size {buffer_size}: {method} keeps a memory per task and there are {n_tasks} tasks; "
            f"give at least {n_tasks}, or 0 for no memory"
        )
    return RingMemory(n_tasks, buffer_size // n_tasks, setup.generator("buffer"), setup.device)
