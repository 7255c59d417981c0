"""The memory protocol: every class in utils/buffers that stores samples fulfils it, and behaves the same."""

import importlib
import inspect
import io
import pkgutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from engram.utils import buffers
from engram.utils.buffers.exemplar_memory import ExemplarMemory
from engram.utils.buffers.factory import MEMORIES, memory_for, ring_for
from engram.utils.buffers.memory import Memory, StreamMemory
from engram.utils.buffers.reservoir import Buffer, FIFOBuffer, UnlimitedBuffer
from engram.utils.buffers.ring import KeyedRing, RingMemory
from engram.utils.buffers.weighted_reservoirs import (
    BalancedBuffer,
    EvictingBuffer,
    LossAwareBalancedBuffer,
    LossAwareBuffer,
    ProtectedBuffer,
)
from engram.utils.errors import UserError

SIZE, N_CLASSES, N_TASKS = 8, 4, 2
MASKS = torch.tensor([[True, True, False, False], [False, False, True, True]])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


SETUP = SimpleNamespace(
    device=torch.device("cpu"),
    benchmark=SimpleNamespace(n_classes=N_CLASSES, tasks=[None] * N_TASKS, class_masks=MASKS),
    generator=lambda purpose: generator(),
)
BUILDERS: dict[type, Callable[[], Memory]] = {
    Buffer: lambda: Buffer(SIZE, generator(), "cpu"),
    FIFOBuffer: lambda: FIFOBuffer(SIZE, generator(), "cpu"),
    UnlimitedBuffer: lambda: UnlimitedBuffer(generator(), "cpu"),
    BalancedBuffer: lambda: BalancedBuffer(SIZE, N_CLASSES, generator(), "cpu"),
    ProtectedBuffer: lambda: ProtectedBuffer(SIZE, N_CLASSES, generator(), "cpu"),
    LossAwareBuffer: lambda: LossAwareBuffer(SIZE, generator(), "cpu"),
    LossAwareBalancedBuffer: lambda: LossAwareBalancedBuffer(SIZE, N_CLASSES, generator(), "cpu"),
    RingMemory: lambda: RingMemory(N_TASKS, SIZE // N_TASKS, generator(), "cpu"),
    KeyedRing: lambda: KeyedRing("y", N_CLASSES, SIZE // N_CLASSES, generator(), "cpu"),
    ExemplarMemory: lambda: ExemplarMemory(SIZE, SETUP),
}
every_memory = pytest.mark.parametrize("kind", BUILDERS, ids=lambda kind: kind.__name__)


def samples(task: int) -> dict[str, torch.Tensor]:
    """Ten samples of each of the task's two classes, with every field that some memory needs."""
    index = torch.arange(20)
    fields = {"index": 100 * task + index, "y": 2 * task + index % 2, "score": index / 20}
    fields["image"] = fields["index"].view(20, 1, 1) + torch.arange(6).view(2, 3)
    return fields | {"task_id": torch.full((20,), task), "protected": index % 5 == 0}


def store(memory: Memory, task: int) -> None:
    """Give a task's samples to a memory in the way it takes them."""
    fields = samples(task)
    if isinstance(memory, ProtectedBuffer):
        del fields["protected"]  # which newcomers are not
    if isinstance(memory, ExemplarMemory):
        memory.renew(task, lambda rows, k: rows[:k], **fields)
    elif isinstance(memory, RingMemory):
        memory.add(task, **fields)
    else:
        assert isinstance(memory, StreamMemory)
        memory.add(**fields)


def test_every_class_that_stores_samples_is_tested_here():
    modules = [
        importlib.import_module(f"{buffers.__name__}.{m.name}")
        for m in pkgutil.iter_modules(buffers.__path__)
    ]
    classes = {c for module in modules for _, c in inspect.getmembers(module, inspect.isclass)}
    stores = {c for c in classes if c.__module__.startswith(buffers.__name__) and hasattr(c, "stored")}
    assert stores - {Memory, StreamMemory, EvictingBuffer} == set(BUILDERS)


@every_memory
def test_it_fulfils_the_protocol(kind):
    memory = BUILDERS[kind]()
    assert isinstance(memory, Memory)
    assert not memory and len(memory) == 0 and memory.stored() == {}


@every_memory
def test_it_stores_at_most_its_size_and_samples_what_it_stores(kind):
    memory = BUILDERS[kind]()
    for task in range(N_TASKS):
        store(memory, task)
        stored = memory.stored()
        assert memory and 0 < len(memory) <= memory.size
        assert stored.keys() == samples(0).keys() and all(len(v) == len(memory) for v in stored.values())
        offered = torch.cat([samples(t)["index"] for t in range(task + 1)])
        assert torch.isin(stored["index"], offered).all() and len(stored["index"].unique()) == len(memory)
        drawn = memory.sample(3)
        assert all(len(v) == 3 for v in drawn.values())
        assert torch.isin(drawn["index"], stored["index"]).all() and len(drawn["index"].unique()) == 3
        for held in (stored, drawn):
            expected = held["index"].view(-1, 1, 1) + torch.arange(6).view(2, 3)
            assert torch.equal(held["image"], expected), "all fields of a sample stay together"


@every_memory
def test_it_goes_on_from_its_saved_state(kind):
    """Saved between two tasks, loaded into a new memory: both store and draw the same from there on."""
    memory, restored, file = BUILDERS[kind](), BUILDERS[kind](), io.BytesIO()
    store(memory, 0)
    memory.sample(2)
    torch.save(memory.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for m in (memory, restored):
        store(m, 1)
    for expected, actual in ((memory.stored(), restored.stored()), (memory.sample(3), restored.sample(3))):
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[name], actual[name]) for name in expected)


@every_memory
def test_a_saved_state_of_an_empty_memory_stays_empty(kind):
    """Neither the memory that gave a state nor the one that took it changes the state."""
    memory, restored = BUILDERS[kind](), BUILDERS[kind]()
    state, untouched = memory.state_dict(), BUILDERS[kind]().state_dict()
    restored.load_state_dict(state)
    for m in (memory, restored):
        store(m, 0)
        assert state.keys() == untouched.keys() and state["fields"] == {}
        for name in state.keys() - {"fields"}:
            assert torch.equal(torch.as_tensor(state[name]), torch.as_tensor(untouched[name])), name


def test_an_unlimited_memory_has_no_slots_at_first():
    memory, restored = (UnlimitedBuffer(generator(), "cpu") for _ in range(2))
    assert memory.size == 0
    restored.load_state_dict(memory.state_dict())
    assert restored.size == 0


@pytest.mark.parametrize("kind", MEMORIES)
def test_the_factory_makes_every_kind(kind):
    memory = memory_for(kind, SIZE, SETUP)
    assert isinstance(memory, StreamMemory) and memory.size == SIZE
    store(memory, 0)
    assert len(memory) == (SIZE // 2 if kind.endswith("_ring") else SIZE)  # half of the rings are empty


def test_a_ring_without_a_slot_for_each_group_is_refused():
    with pytest.raises(UserError, match="--memory class_ring needs a slot for each of 4 classes"):
        memory_for("class_ring", 3, SETUP)
    with pytest.raises(UserError, match="--memory task_ring needs a slot for each of 2 tasks"):
        memory_for("task_ring", 1, SETUP)
    with pytest.raises(UserError, match="GEM keeps a memory per task and there are 2 tasks"):
        ring_for("GEM", 1, SETUP)
    assert memory_for("class_ring", 0, SETUP).size == ring_for("GEM", 0, SETUP).size == 0


def test_the_tasks_share_a_ring_equally():
    ring = ring_for("GEM", 7, SETUP)
    assert ring.per_task == 3 and ring.size == 6
