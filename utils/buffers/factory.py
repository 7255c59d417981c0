"""How memories are built: by the names that `--memory` takes, and the ring per task of GEM and its kin."""

from engram.utils.buffers.memory import MemorySetup
from engram.utils.buffers.reservoir import Buffer, FIFOBuffer
from engram.utils.buffers.ring import KeyedRing, RingMemory
from engram.utils.buffers.weighted_reservoirs import BalancedBuffer, LossAwareBalancedBuffer, LossAwareBuffer
from engram.utils.errors import UserError

MEMORIES = (
    "reservoir", "balanced", "class_ring", "task_ring", "fifo", "loss_aware", "loss_aware_balanced"
)  # fmt: skip


def memory_for(kind: str, size: int, setup: MemorySetup, rule: str = "uniform") -> Buffer | KeyedRing:
    """A memory of `size` samples, of a kind in `MEMORIES`; a ring shares them equally among classes or tasks.

    rule: of the reservoir, see `Buffer`. Raises `UserError` for a size that gives some ring no slot.
    """
    generator, device, benchmark = setup.generator("buffer"), setup.device, setup.benchmark
    plain = {"reservoir": Buffer, "fifo": FIFOBuffer, "loss_aware": LossAwareBuffer}
    if kind in plain:
        return plain[kind](size, generator, device, rule)
    balanced = {"balanced": BalancedBuffer, "loss_aware_balanced": LossAwareBalancedBuffer}
    if kind in balanced:
        return balanced[kind](size, benchmark.n_classes, generator, device)
    n_groups, key, plural = {
        "class_ring": (benchmark.n_classes, "y", "classes"),
        "task_ring": (len(benchmark.tasks), "task_id", "tasks"),
    }[kind]
    if 0 < size < n_groups:
        raise UserError(
            f"--buffer_size {size}: --memory {kind} needs a slot for each of {n_groups} {plural}; give at "
            f"least {n_groups}, or 0 for no memory"
        )
    return KeyedRing(key, n_groups, size // n_groups, generator, device)


def ring_for(method: str, buffer_size: int, setup: MemorySetup) -> RingMemory:
    """A ring for each task (GEM, A-GEM, HAL), of `buffer_size` samples in total, shared equally by the tasks.

    method: its name, for the `UserError` that a size smaller than the number of tasks raises.
    """
    n_tasks = len(setup.benchmark.tasks)
    if 0 < buffer_size < n_tasks:
        raise UserError(
            f"--buffer_size {buffer_size}: {method} keeps a memory per task and there are {n_tasks} tasks; "
            f"give at least {n_tasks}, or 0 for no memory"
        )
    return RingMemory(n_tasks, buffer_size // n_tasks, setup.generator("buffer"), setup.device)
