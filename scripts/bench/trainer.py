"""The trainer against a bare loop: the same steps and evaluations, written out plainly.

Parts `trainer-mlp` and `trainer-resnet` of `python -m scripts.bench`.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from engram.backbones.backbone import build_network
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Benchmark
from engram.datasets.sources import Source
from engram.datasets.streams import class_incremental
from engram.models.method import Setup
from engram.models.sgd import SGD
from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.methods import bare_network
from engram.scripts.bench.timing import Figure, alternate, random_source
from engram.utils.config.config import Config, resolve
from engram.utils.training.trainer import Trainer


def build(config: Config, source: Source, augment: Augment) -> tuple[Benchmark, SGD]:
    """Benchmark and method as main.py would build them."""
    benchmark = class_incremental("bench", source, augment, config, "cpu")
    net = build_network(config.run.backbone, config.architecture, benchmark, seed=0)
    return benchmark, SGD(net, config.method, Setup(benchmark, config.train, 0))


def trainer_run(config: Config, source: Source, augment: Augment) -> float:
    """Seconds of a whole run of the trainer: data, steps, evaluations, checkpoints, progress."""
    _, method = build(config, source, augment)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, method, Path(folder), quiet=True)
        started = time.perf_counter()
        trainer.run()
        return time.perf_counter() - started


def bare_run(config: Config, source: Source, augment: Augment) -> float:
    """Seconds of the same steps and evaluations, written out plainly over float tensors in memory."""
    benchmark, method = build(config, source, augment)
    net, size = bare_network(method.net), config.train.batch_size
    test = benchmark.test(len(benchmark.tasks))
    test_x, test_y = augment.normalise(test.x_raw), test.y
    tasks = [(augment.normalise(benchmark.train(t).x_raw), benchmark.train(t).y) for t in benchmark.tasks]
    started = time.perf_counter()
    bare_accuracy(net, test_x, test_y)
    for x, y in tasks:
        optimizer = torch.optim.SGD(net.parameters(), lr=config.train.lr)
        for i in range(0, len(y), size):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[i : i + size]), y[i : i + size])
            loss.backward()
            optimizer.step()
        bare_accuracy(net, test_x, test_y)
    return time.perf_counter() - started


@torch.no_grad()
def bare_accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy in chunks of 500."""
    net.eval()
    hits = sum((net(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True))
    net.train()
    return hits.item() / len(y)


def compare_trainer(title: str, flags: dict, source: Source, augment: Augment, rounds: int) -> list[Figure]:
    """The overhead of the trainer over the bare loop."""
    config = resolve([("bench", {"model": "sgd", "n_epochs": 1, "n_tasks": 2, "lr": 0.01, **flags})])
    sides = [lambda run=run: run(config, source, augment) for run in (trainer_run, bare_run)]
    ours, bare, ratio = alternate(*sides, rounds)
    n_steps = -(-len(source.train_y) // config.train.batch_size)
    text = (
        f"{title}: trainer / bare loop = {ratio:.3f}  ({n_steps} steps + 3 evaluations of "
        f"{len(source.test_y)} images; medians of {rounds} rounds: {ours:.2f} s, {bare:.2f} s)"
    )
    return [Figure(f"{title}: trainer / bare", text, {"ratio": ratio, "seconds": ours, "bare_s": bare})]


def trainer_mlp() -> list[Figure]:
    """The 784-100-100-10 MLP at batch 10, one thread."""
    torch.set_num_threads(1)
    source = random_source(12_000, 2_000, (1, 28, 28))
    flags = {"backbone": "mlp", "batch_size": 10}
    return compare_trainer("MLP, 28x28, batch 10, 1 thread", flags, source, Augment(), rounds=7)


def trainer_resnet() -> list[Figure]:
    """ResNet-18 on CIFAR-sized images at batch 32, all cores; ours also crops and flips."""
    torch.set_num_threads(os.cpu_count())
    source = random_source(1024, 64, (3, 32, 32))
    flags = {"backbone": "resnet18", "batch_size": 32}
    return compare_trainer("ResNet-18, 32x32, batch 32", flags, source, CIFAR, rounds=3)
