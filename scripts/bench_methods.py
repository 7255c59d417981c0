"""Speed of methods: their steps against a bare loop with as much arithmetic, and against the task's number.

Parts of scripts/bench.py: `methods-mlp`, `methods-resnet`, `scaling`. A bare step is zero_grad, the forward
and backward passes that the method cannot do without, and the optimizer, over float images in memory; ours
is the trainer's epoch, with data path, augmentation, buffer, progress and losses. What the method adds
between tasks (importances, copies) is not part of a step.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from backbones.backbone import build_network
from datasets.augment import Augment
from datasets.benchmark import class_incremental
from models.method import Method, Setup
from scripts.bench_buffer import CIFAR
from scripts.timing import alternate, random_source
from utils import registry
from utils.config import resolve
from utils.interrupt import Interrupt
from utils.optimizers import build_optimizer
from utils.progress import Progress
from utils.training import Trainer


@dataclass(frozen=True)
class Case:
    """A method's flags, and its passes per step as multiples of the batch: trained, and forward only."""

    flags: dict
    trained: tuple[int, ...] = (1,)
    forward: tuple[int, ...] = ()


METHODS = {
    "sgd": Case({}),
    "er": Case({"buffer_size": 200}, trained=(2,)),
    "derpp": Case({"buffer_size": 200}, trained=(1, 1, 1)),
    "ewc": Case({"fisher_n": 20, "e_lambda": 0.001}),
    "mas": Case({"mas_n": 20, "mas_lambda": 1e-5}),
    "si": Case({"si_c": 0.001}),
    "lwf": Case({}, forward=(1,)),
}
SCALING = ("er", "ewc", "mas", "si", "gem")
EARLY, LATE = 1, 19  # tasks, from 0: the second and the twentieth


class Stream:
    """A method that has learned `task` tasks of a few steps and begun the next."""

    def __init__(self, model: str, flags: dict, n_tasks: int, task: int, source, augment: Augment):
        fixed = {"model": model, "n_epochs": 10**6, "n_tasks": n_tasks, "lr": 1e-4, "device": "cpu"}
        config = resolve([("bench", fixed | flags)])
        benchmark = class_incremental("bench", source, augment, config, "cpu")
        net = build_network(config.run.backbone, config.architecture, benchmark, seed=0)
        method_class = registry.plugin_class(registry.load("models", model), Method)
        method = method_class(net, config.method, Setup(benchmark, config.train, 0))
        self.benchmark, self.size, self.augment = benchmark, config.train.batch_size, augment
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = Trainer(config, method, Path(self.folder.name), quiet=True)
        self.trainer.progress = Progress(1, 0, quiet=True)
        for self.task in benchmark.tasks[: task + 1]:
            self.trainer._begin(self.task)
            for batch in islice(benchmark.batches(self.task, 0, self.size), 3):
                method.observe(batch)
            if self.task.id < task:
                method.end_task(self.task)
        self.n_steps = benchmark.n_steps(self.task, self.size)

    def epoch(self) -> float:
        """Seconds of one epoch of the trainer."""
        started = time.perf_counter()
        with Interrupt() as self.trainer.interrupt:
            self.trainer._run_epoch(self.task)
        self.trainer.position.step = 0
        return time.perf_counter() - started


def bare_epoch(stream: Stream, case: Case) -> float:
    """Seconds of as many bare steps."""
    net, size = stream.trainer.method.net, stream.size
    samples = stream.benchmark.train(stream.task)
    x, y = stream.augment.normalise(samples.x_raw), samples.y
    wide = max(case.trained + case.forward)
    x, y = x.repeat(wide, 1, 1, 1), y.repeat(wide)
    optimizer = build_optimizer(net.parameters(), stream.trainer.config.train)
    started = time.perf_counter()
    for i in range(0, stream.n_steps * size, size):
        optimizer.zero_grad()
        for n in case.forward:
            with torch.no_grad():
                net(x[i : i + n * size])
        loss = sum(F.cross_entropy(net(x[i : i + n * size]), y[i : i + n * size]) for n in case.trained)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def methods(title: str, backbone: dict, n_train: int, shape: tuple[int, ...], augment: Augment) -> str:
    """One line for each method."""
    source, lines = random_source(n_train, 20, shape), []
    for name, case in METHODS.items():
        stream = Stream(name, backbone | case.flags, 2, 1, source, augment)
        ours, bare, ratio = alternate(stream.epoch, lambda s=stream, c=case: bare_epoch(s, c), rounds=5)
        passes = [f"{n}B trained" for n in case.trained] + [f"{n}B forward" for n in case.forward]
        lines.append(
            f"{title}, {name}: trainer / bare loop of {' + '.join(passes)} = {ratio:.3f}  ({stream.n_steps} "
            f"steps; medians of 5 rounds: {ours:.3f} s, {bare:.3f} s)"
        )
    return "\n".join(lines)


def methods_mlp() -> str:
    """The 784-100-100-10 MLP at batch 10, one thread."""
    torch.set_num_threads(1)
    flags = {"backbone": "mlp", "batch_size": 10}
    return methods("MLP, batch 10", flags, 6000, (1, 28, 28), Augment())


def methods_resnet() -> str:
    """ResNet-18 on CIFAR-sized images at batch 32, all cores."""
    torch.set_num_threads(os.cpu_count())
    flags = {"backbone": "resnet18", "batch_size": 32}
    return methods("ResNet-18, batch 32", flags, 128 * 2, (3, 32, 32), CIFAR)


def scaling() -> str:
    """A step in the twentieth task against one in the second: MLP, batch 10, one thread."""
    torch.set_num_threads(1)
    source, lines = random_source(20 * 1000, 40, (1, 28, 28), n_classes=40), []
    flags = {"backbone": "mlp", "batch_size": 10}
    for name in SCALING:
        own = {"buffer_size": 5120} if name == "gem" else METHODS[name].flags
        early, late = (Stream(name, flags | own, 20, task, source, Augment()) for task in (EARLY, LATE))
        seconds, before, ratio = alternate(late.epoch, early.epoch, rounds=5)
        per_step = f"{1e6 * before / early.n_steps:.0f} and {1e6 * seconds / late.n_steps:.0f} µs"
        passes = f"; gradients per step: {EARLY + 1} and {LATE + 1}" if name == "gem" else ""
        lines.append(f"cost against T, {name}: task 20 / task 2 = {ratio:.3f}  (a step: {per_step}{passes})")
    return "\n".join(lines)
