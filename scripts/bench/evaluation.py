"""Evaluation: images per second of `accuracies` against the network alone at its best batch.

Part `evaluation` of `python -m scripts.bench`. Our side normalises uint8 test images of all tasks, runs the
network, takes the best class in each view and counts; the limit is the forward pass alone, on floats that are
already there, at the size of batch that is fastest. Processor time on a CPU, so that other programs do not
decide; on a GPU wall time.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engram.backbones.backbone import build_network
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.perm_mnist import permuted
from engram.datasets.streams import class_incremental
from engram.memorization import proxies
from engram.models.build import build_setup
from engram.models.sgd import SGD
from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.timing import Figure, random_source, wait_for
from engram.utils import device as devices
from engram.utils.config.config import resolve
from engram.utils.training.evaluation import accuracies

SIZES = {"cpu": (50, 100, 250, 500, 1000, 2000), "cuda": (250, 500, 1000, 2000, 4000, 8000, 16000)}
CASES = {"mlp": (20, 2000), "cnn": (5, 300), "resnet18": (5, 40)}  # tasks, test images of each on a CPU
N_ON_GPU = 10_000  # test images of a task on a GPU


def untrained(backbone: str, device: torch.device, n_tasks: int, n_test: int) -> SGD:
    """The network on permuted 28x28 images (mlp), else on CIFAR-sized images of ten classes."""
    flags = {"model": "sgd", "backbone": backbone, "n_tasks": n_tasks, "device": str(device)}
    grey = backbone == "mlp"
    config = resolve([("bench", flags | {"dataset": "perm-mnist" if grey else "seq-cifar10"})])
    benchmark: Benchmark
    if grey:
        source = random_source(100, n_test, (1, 28, 28))
        benchmark = permuted("bench", source, config, device)
    else:
        source = random_source(100, n_tasks * n_test, (3, 32, 32))
        augment = Augment(CIFAR.mean, CIFAR.std)
        benchmark = class_incremental("bench", source, augment, config, device)
    net = build_network(backbone, config.architecture, benchmark, seed=0)
    method = SGD(net, config.method, build_setup(config, benchmark, proxies.create))
    method.enter(benchmark.tasks[0])
    return method


def least_seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The least time of some rounds, after one that is not counted."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    work()
    least = math.inf
    for _ in range(rounds):
        wait_for(device)
        started = clock()
        work()
        wait_for(device)
        least = min(least, clock() - started)
    return least


@torch.no_grad()
def limit(method: SGD, n: int, rounds: int) -> tuple[float, int]:
    """Images/s of the network alone on about `n` images, and the size of batch at which it is reached."""
    device, net, best = method.device, method.net.eval(), (0.0, 0)
    for size in (s for s in SIZES[device.type] if s <= n):
        x = torch.rand(size, *method.benchmark.input_shape, device=device)
        task_id = torch.zeros(size, dtype=torch.long, device=device)
        n_passes = n // size

        def passes(x: Tensor = x, task_id: Tensor = task_id, n_passes: int = n_passes) -> None:
            for _ in range(n_passes):
                net(x, task_id)

        best = max(best, (n_passes * size / least_seconds(passes, device, rounds), size))
    return best


def compared(backbone: str, device: torch.device, rounds: int = 5) -> Figure:
    """The figure of one network; ratio: the time of an evaluation over the limit's."""
    n_tasks, n_test = CASES[backbone]
    method = untrained(backbone, device, n_tasks, N_ON_GPU if device.type == "cuda" else n_test)
    n = int(method.benchmark.test_ends[-1])
    best, size = limit(method, n, rounds)
    ours = n / least_seconds(lambda: accuracies(method, n_tasks, n_tasks), device, rounds)
    text = (
        f"evaluation, {backbone}, {n:,} images: {ours:,.0f} images/s; the network alone {best:,.0f} at batch "
        f"{size}, {best / ours:.2f} times as fast"
    )
    return Figure(f"evaluation / network, {backbone}", text, {"ratio": best / ours, "images_per_s": ours})


def evaluation(device_name: str) -> list[Figure]:
    """Measure the mlp and the cnn (on a GPU ResNet-18 too); one thread on a CPU."""
    device = devices.choose(device_name)
    torch.set_num_threads(1)
    names = CASES if device.type == "cuda" else ("mlp", "cnn")
    return [compared(name, device) for name in names]
