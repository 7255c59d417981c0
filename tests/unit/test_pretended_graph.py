"""The pretended graph can fail: it refuses what a capture refuses, and freezes what a capture freezes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from engram.utils.training.optimizers import SGD, Adam
from engram.utils.transfer import HostPlan, decide, send
from tests import pretended_device
from tests.pretended_device import PretendedDevice
from tests.pretended_graph import CaptureError, PretendedGraph, pretended_graphs

SGD_FLAGS = {"lr": 0.1, "fused": True}


@pytest.fixture(autouse=True)
def gpu() -> Iterator[PretendedDevice]:
    with PretendedDevice() as device, pretended_graphs(device):
        yield device


class World:
    """What the steps of these tests read and change: x on the device, a counter and draws on the host."""

    def __init__(self) -> None:
        with torch.no_grad():
            self.x = torch.full((3,), 2.0, device="cuda").requires_grad_()
        self.total = torch.zeros(3, device="cuda")
        self.count = 0
        self.host = torch.Generator().manual_seed(0)
        self.device = torch.Generator("cuda").manual_seed(0)
        self.optimizer = SGD([self.x], momentum=0.9, **SGD_FLAGS)

    def descend(self) -> None:
        """A step of SGD on the sum of squares."""
        self.optimizer.zero_grad()
        self.x.square().sum().backward()
        self.optimizer.step()


def captured(world: World, step: Callable[[World], object]) -> PretendedGraph:
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(world.device)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step(world)
    return graph


def outcomes(step: Callable[[World], object], n_warm_up: int = 1) -> tuple[Tensor, Tensor]:
    """(2, 3): x and the total after three replays, and after as many eager steps."""
    replayed, eager = World(), World()
    for _ in range(n_warm_up):
        step(replayed)
    graph = captured(replayed, step)
    for _ in range(3):
        graph.replay()
    for _ in range(n_warm_up + 3):
        step(eager)
    return tuple(torch.stack((w.x.detach(), w.total)).to("cpu") for w in (replayed, eager))


def counted_on_device(world: World) -> None:
    world.total += 1


def with_registered_draws(world: World) -> None:
    world.total += torch.rand(3, generator=world.device, device="cuda")


def with_views(world: World) -> None:
    world.total[1:].add_(world.x.detach().view(3, 1)[:2, 0])


LEGAL = [World.descend, counted_on_device, with_registered_draws, with_views]


@pytest.mark.parametrize("step", LEGAL)
def test_replays_compute_what_eager_steps_do(step):
    replayed, eager = outcomes(step)
    assert torch.equal(replayed, eager)
    assert not torch.equal(eager[1], torch.zeros(3)) or step is World.descend


def replaced(world: World) -> None:
    world.total = world.total + 1


def baked_counter(world: World) -> None:
    world.count += 1
    world.total += world.count


def baked_branch(world: World) -> None:
    world.count += 1
    if world.count % 2:
        world.total += 1


def host_draw(world: World) -> None:
    world.total += torch.rand(3, generator=world.host).sum()  # a CPU tensor of no dimensions: a number


def scheduled_rate(world: World) -> None:
    world.descend()
    for group in world.optimizer.param_groups:
        group["lr"] *= 0.5


@pytest.mark.parametrize("step", [baked_counter, baked_branch, host_draw, scheduled_rate])
def test_what_the_host_did_is_frozen(step):
    replayed, eager = outcomes(step)
    assert not torch.equal(replayed, eager)


def test_a_tensor_replaced_instead_of_written_is_seen():
    with pytest.raises(CaptureError, match="freed"):
        outcomes(replaced)


def test_optimizer_state_of_the_first_step_is_frozen():
    """Momentum begins anew at every replay of a first step."""
    replayed, eager = outcomes(World.descend, n_warm_up=0)
    assert not torch.equal(replayed, eager)


def adam_step(world: World) -> None:
    if not isinstance(world.optimizer, Adam):
        world.optimizer = Adam([world.x], lr=0.1, fused=True)
    world.descend()


REFUSED = {
    "item": lambda w: w.total.sum().item(),
    "a condition": lambda w: bool((w.total > 0).all()),
    "a blocking copy": lambda w: torch.tensor([1.0], device="cuda"),
    "a copy from pinned memory": lambda w: send([1.0], "cuda"),
    "a copy into a fixed tensor": lambda w: w.total.copy_(torch.ones(3).pin_memory(), non_blocking=True),
    "a size that depends on data": lambda w: (w.total > 0).nonzero(),
    "an unregistered generator": lambda w: torch.rand(3, generator=torch.Generator("cuda"), device="cuda"),
    "an optimizer that is not capturable": adam_step,
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_a_capture_forbids_is_refused(mistake):
    world = World()
    with pytest.raises(RuntimeError):
        captured(world, REFUSED[mistake])
    assert torch.equal(world.x.detach().to("cpu"), torch.full((3,), 2.0)), "as before"


def test_a_capture_computes_nothing():
    world = World()
    world.descend()
    before, state = world.x.detach().to("cpu"), world.device.get_state()
    graph = captured(world, lambda w: (w.descend(), with_registered_draws(w)))
    assert torch.equal(world.x.detach().to("cpu"), before)
    assert torch.equal(world.total.to("cpu"), torch.zeros(3))
    assert torch.equal(world.device.get_state(), state)
    graph.replay()
    assert not torch.equal(world.x.detach().to("cpu"), before)
    assert not torch.equal(world.device.get_state(), state)


def test_a_size_that_changes_unseen_is_seen(monkeypatch):
    monkeypatch.delitem(pretended_device.READS, "nonzero")
    world = World()
    graph = captured(world, lambda w: w.total.nonzero())
    world.total[0] = 1.0
    with pytest.raises(CaptureError, match="size"):
        graph.replay()


def test_a_plan_makes_the_host_s_decisions_anew():
    """In the order of an eager step: numbers, then a permutation, from one generator."""

    def step(world: World) -> None:
        amounts = decide(lambda: torch.rand(3, generator=world.host), "cuda")
        order = decide(lambda: torch.randperm(3, generator=world.host), "cuda")
        world.total += amounts.index_select(0, order)

    replayed, eager = World(), World()
    plan, graph = HostPlan(torch.device("cuda")), torch.cuda.CUDAGraph()
    with plan.collecting(), torch.cuda.graph(graph):
        step(replayed)
    for _ in range(4):
        plan.deliver()
        graph.replay()
        step(eager)
    assert torch.equal(replayed.total.to("cpu"), eager.total.to("cpu"))


def test_a_plan_refuses_a_decision_of_another_size(gpu):
    sizes = iter((3, 3, 2))
    plan = HostPlan(torch.device("cuda"))
    with plan.collecting():
        decide(lambda: torch.zeros(next(sizes)), "cuda")
    gpu.waits.clear()
    plan.deliver()
    plan.deliver()
    assert not gpu.waits
    with pytest.raises(ValueError, match=r"was \(3,\).* now \(2,\)"):
        plan.deliver()


def test_a_plan_has_an_end():
    with HostPlan(torch.device("cuda"), n_bytes=64).collecting(), pytest.raises(ValueError, match="64 bytes"):
        for _ in range(5):
            decide(lambda: torch.zeros(3), "cuda")
