"""Every method on a pretended CUDA device: nothing on the wrong device, and no step waits for the device."""

from collections.abc import Iterator

import pytest
import torch

from engram.models.method import Method
from engram.utils.training.evaluation import accuracies
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.trainer import Trainer
from tests.conftest import methods_with_code
from tests.contract.test_methods import CASES, assert_same, classes_of, flags_of, small_method, train, weights
from tests.pretended_device import PretendedDevice

pytestmark = pytest.mark.own_device

# Every operation takes long on a pretended device: four steps a task, the last with a smaller batch.
FEW_STEPS = {"device": "cuda", "batch_size": 8}

# Blocking operations that a step may have, and why. All others have none.
MAY_WAIT = {
    "gem": (1, "the quadratic program of a violated constraint is solved on the host"),
}


@pytest.fixture
def gpu() -> Iterator[PretendedDevice]:
    with PretendedDevice() as device:
        yield device


def tasks_of(method: Method) -> list:
    streams = {"joint": method.benchmark.joint, "cumulative": method.benchmark.cumulative}
    return streams[method.stream]() if method.stream in streams else method.benchmark.tasks


def learn(method: Method, config, task, gpu: PretendedDevice | None = None) -> int:
    """Train on a task as the trainer does, its end left out; returns the number of steps."""
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    batches = list(method.benchmark.batches(task, 0, config.train.batch_size))
    if gpu is not None:
        gpu.waits.clear()
    for batch in batches:
        method.observe(batch)
    return len(batches)


@pytest.mark.parametrize(("model", "scenario"), [case for case in CASES if case[0] in methods_with_code()])
def test_a_step_does_not_wait(model, scenario, gpu):
    """In the last of two tasks, whose memories are full of the first."""
    method, config = small_method(model, scenario, **FEW_STEPS)
    *earlier, last = tasks_of(method)[:2]
    for task in earlier:
        learn(method, config, task)
        method.end_task(task)
    if earlier and "buffer_size" in flags_of(model):
        (n_stored,) = {len(field) for field in method.buffer.stored().values()}
        share = method.buffer.size // len(method.benchmark.tasks)
        assert n_stored >= share - 1, "full, but for the sample that bic keeps for validation"
    n_steps = learn(method, config, last, gpu)
    allowed, _ = MAY_WAIT.get(model, (0, ""))
    assert sum(gpu.waits.values()) <= allowed * n_steps, gpu.waits
    assert all(p.device.type == "cuda" for p in method.net.parameters())


@pytest.mark.parametrize("model", ["er", "ewc", "maer", "gem"])
def test_nor_does_one_of_a_convolutional_network(model, gpu):
    """There crops, batch norm and per-sample gradients take part."""
    flags = {"backbone": "resnet18", "width": 0.125, "n_tasks": 2, "batch_size": 9}
    method, config = small_method(model, device="cuda", **flags)
    for task in method.benchmark.tasks[:1]:
        learn(method, config, task)
        method.end_task(task)
    n_steps = learn(method, config, method.benchmark.tasks[1], gpu)
    allowed, _ = MAY_WAIT.get(model, (0, ""))
    assert sum(gpu.waits.values()) <= allowed * n_steps, gpu.waits


def test_the_exceptions_are_needed(gpu):
    """A method that waits no longer leaves the table."""
    for model, (allowed, reason) in MAY_WAIT.items():
        method, config = small_method(model, device="cuda")
        first, second = tasks_of(method)[:2]
        learn(method, config, first)
        method.end_task(first)
        n_steps = learn(method, config, second, gpu)
        assert sum(gpu.waits.values()) == allowed * n_steps, model
        assert len(reason.split()) >= 6


@pytest.mark.parametrize("model", methods_with_code())
def test_a_whole_run_stays_on_the_device(model, gpu, autograd, monkeypatch):
    """Training, evaluation and ends of tasks compute what they do on the CPU, up to the order of sums."""
    method, results = train(*small_method(model, **FEW_STEPS))
    with_cpu, expected = train(*small_method(model, **FEW_STEPS | {"device": "cpu"}))
    with gpu.unwatched():
        found = {k: v.cpu() for k, v in weights(method).items()}
    for name, value in weights(with_cpu).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    for view in results.R:
        torch.testing.assert_close(results.R[view], expected.R[view], rtol=0, atol=0.2, equal_nan=True)


@pytest.mark.parametrize("model", [m for m in methods_with_code() if classes_of(m).stream == "sequential"])
def test_a_checkpoint_of_the_device_continues_there(model, gpu, folder):
    """Stopped after a task and read back from the file: the same bits as without the stop."""
    whole, _ = train(*small_method(model, **FEW_STEPS))
    method, config = small_method(model, **FEW_STEPS)
    first = Trainer(config, method, folder, quiet=True)
    first.tasks = first.tasks[:1]
    first.run()
    resumed, _ = small_method(model, **FEW_STEPS)
    second = Trainer(config, resumed, folder, quiet=True)
    second.load()
    second.save = lambda: None
    second.run()
    assert_same(weights(resumed), weights(whole))
    assert all(p.device.type == "cuda" for p in resumed.net.parameters())


def test_evaluation_reads_once(gpu):
    method, _ = small_method("er", device="cuda")
    method.enter(method.benchmark.tasks[0])
    accuracies(method, 3, 3)  # test images are stacked at the first evaluation
    gpu.waits.clear()
    accuracies(method, 3, 3)
    assert sum(gpu.waits.values()) == 1, gpu.waits


# Kernels that a step of ResNet-18 launches at most: plain SGD's, and how many more other methods'. The memory
# is full and small, so that rows of almost every batch enter it.
SGD_LAUNCHES = 142
MAY_LAUNCH_MORE = {
    "er": 20,
    "maer": 26,
    "derpp": 442,  # batch norm keeps three passes apart: two more of 138, and 124 sums of their gradients
    "gem": 179,  # a second pass over the memory of the past
    "ewc": 4,
    "mas": 5,
    "si": 129,  # two operations a parameter
    "lwf": 97,  # the teacher's pass
}


def launches_per_step(model: str, gpu: PretendedDevice) -> float:
    """Kernels of a step in the second of two tasks, the mean of three; widths and sizes do not matter."""
    flags = {"backbone": "resnet18", "width": 0.05, "n_tasks": 2, "batch_size": 8}
    flags |= {"buffer_size": 16} if "buffer_size" in flags_of(model) else {}
    method, config = small_method(model, device="cuda", **flags)
    first, second = method.benchmark.tasks[:2]
    learn(method, config, first)
    method.end_task(first)
    method.enter(second)
    method.begin_task(second)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    batches = list(method.benchmark.batches(second, 0, 8))[:3]
    gpu.launches.clear()
    for batch in batches:
        method.observe(batch)
    return sum(gpu.launches.values()) / len(batches)


@pytest.mark.parametrize("model", ["sgd", *MAY_LAUNCH_MORE])
def test_a_step_launches_few_kernels(model, gpu):
    assert launches_per_step(model, gpu) <= SGD_LAUNCHES + MAY_LAUNCH_MORE.get(model, 0), gpu.launches
