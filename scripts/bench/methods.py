"""Speed of methods: their steps against a bare loop with as much arithmetic, and against the task's number.

Parts of `python -m scripts.bench`: `methods-mlp`, `methods-resnet`, `scaling`. A bare step is zero_grad,
the forward and backward passes that the method cannot do without, its penalty written out, and the
optimizer, over float images in memory; ours is the trainer's epoch, with data path, augmentation, buffer,
progress and losses. What the method adds between tasks (importances, copies) is not part of a step.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone, build_network
from engram.backbones.mlp import MLP
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Task
from engram.datasets.streams import class_incremental
from engram.memorization import proxies
from engram.models.build import build_setup
from engram.models.method import Method
from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.timing import Figure, alternate, random_source, wait_for
from engram.utils import device as devices
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.training.evaluation import accuracies
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.progress import Progress
from engram.utils.training.signals import SignalHandler
from engram.utils.training.trainer import Trainer


@dataclass(frozen=True)
class Case:
    """A method's flags, its passes per step as multiples of the batch (trained, and forward only), and
    whether its loss has a quadratic penalty.
    """

    flags: dict
    trained: tuple[int, ...] = (1,)
    forward: tuple[int, ...] = ()
    penalty: bool = False

    def __str__(self) -> str:
        passes = [f"{n}B trained" for n in self.trained] + [f"{n}B forward" for n in self.forward]
        return " + ".join([*passes, "a penalty"] if self.penalty else passes)


METHODS = {
    "sgd": Case({}),
    "er": Case({"buffer_size": 200}, trained=(2,)),
    "maer": Case({"buffer_size": 200}, trained=(2,)),
    "derpp": Case({"buffer_size": 200}, trained=(1, 1, 1)),
    "ewc": Case({"fisher_n": 20, "e_lambda": 0.001}, penalty=True),
    "mas": Case({"mas_n": 20, "mas_lambda": 1e-5}, penalty=True),
    "si": Case({"si_c": 0.001}, penalty=True),
    "lwf": Case({}, forward=(1,)),
}
SCALING = ("er", "ewc", "mas", "si", "gem")
MLP_FLAGS = {"backbone": "mlp", "batch_size": 10}
EARLY, LATE = 1, 19  # tasks, from 0: the second and the twentieth


class Stream:
    """A method that has learned `task` tasks of a few steps and begun the next."""

    def __init__(self, model: str, flags: dict, n_tasks: int, task: int, source, augment: Augment):
        fixed = {"model": model, "n_epochs": 10**6, "n_tasks": n_tasks, "lr": 1e-4, "device": "cpu"}
        fixed["checkpoint_every"] = 10**6  # no folder to write to
        config = resolve([("bench", fixed | flags)])
        self.device = devices.choose(config.run.device)
        benchmark = class_incremental("bench", source, augment, config, self.device)
        net = build_network(config.run.backbone, config.architecture, benchmark, seed=0)
        method_class = registry.plugin_class(registry.load("models", model), Method)
        method = method_class(net, config.method, build_setup(config, benchmark, proxies.create))
        self.benchmark, self.size, self.augment = benchmark, config.train.batch_size, augment
        self.trainer = Trainer(config, method, folder=None, quiet=True)
        self.trainer.progress = Progress(1, 0, quiet=True)
        for self.task in benchmark.tasks[: task + 1]:
            self.begin(self.task)
            if self.task.id < task:
                method.end_task(self.task)
        self.n_steps = benchmark.n_steps(self.task, self.size)

    def begin(self, task: Task, n_steps: int = 3) -> None:
        """Begin a task and take some of its steps."""
        self.task = task
        self.trainer._begin(task)
        for batch in islice(self.benchmark.batches(task, 0, self.size), n_steps):
            self.trainer.method.observe(batch)

    def epoch(self) -> float:
        """Seconds of one epoch of the trainer."""
        started = time.perf_counter()
        with SignalHandler() as self.trainer.signals:
            self.trainer._run_epoch(self.task)
        self.trainer.position.step = 0
        wait_for(self.device)
        return time.perf_counter() - started

    def evaluation(self) -> float:
        """Seconds of one evaluation of all tasks so far."""
        started = time.perf_counter()
        accuracies(self.trainer.method, self.task.id + 1, self.task.id + 1)
        wait_for(self.device)
        return time.perf_counter() - started


def bare_network(net: Backbone) -> nn.Module:
    """The network as PyTorch's users write it: of an MLP, which calls none of its modules, those in a row."""
    return nn.Sequential(*net.layers, net.head) if isinstance(net, MLP) else net


def bare_epoch(stream: Stream, case: Case) -> float:
    """Seconds of as many bare steps, over float images in memory."""
    samples, size = stream.benchmark.train(stream.task), stream.size
    wide = max(case.trained + case.forward)
    x, y = stream.augment.normalise(samples.x_raw).repeat(wide, 1, 1, 1), samples.y.repeat(wide)
    starts = range(0, stream.n_steps * size, size)
    return bare_steps(stream, case, ((x[i : i + wide * size], y[i : i + wide * size]) for i in starts))


def bare_steps(stream: Stream, case: Case, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Seconds of bare steps on batches as wide as the widest pass."""
    net, size = bare_network(stream.trainer.method.net), stream.size
    parameters = list(net.parameters())
    optimizer = build_optimizer(parameters, stream.trainer.config.train)
    anchors = [p.detach().clone() for p in parameters]
    weights = [torch.full_like(p, 1e-3) for p in anchors]
    started = time.perf_counter()
    for x, y in batches:
        optimizer.zero_grad()
        for n in case.forward:
            with torch.no_grad():
                net(x[: n * size])
        loss = sum(F.cross_entropy(net(x[: n * size]), y[: n * size]) for n in case.trained)
        if case.penalty:
            pulls = zip(parameters, anchors, weights, strict=True)
            loss = loss + sum((w * (p - a).square()).sum() for p, a, w in pulls)
        loss.backward()
        optimizer.step()
    wait_for(stream.device)
    return time.perf_counter() - started


def methods(
    title: str, backbone: dict, n_train: int, shape: tuple[int, ...], augment: Augment
) -> list[Figure]:
    """Measure every method of `METHODS`; returns a figure for each."""
    source, figures = random_source(n_train, 20, shape), []
    for name, case in METHODS.items():
        stream = Stream(name, backbone | case.flags, 2, 1, source, augment)
        ours, bare, ratio = alternate(stream.epoch, lambda s=stream, c=case: bare_epoch(s, c), rounds=5)
        text = (
            f"{title}, {name}: trainer / bare loop of {case} = {ratio:.3f}  ({stream.n_steps} "
            f"steps; medians of 5 rounds: {ours:.3f} s, {bare:.3f} s)"
        )
        numbers = {"ratio": ratio, "seconds": ours / stream.n_steps, "bare_s": bare / stream.n_steps}
        figures.append(Figure(f"{title}, {name} / bare", text, numbers))
    return figures


def methods_mlp() -> list[Figure]:
    """The 784-100-100-10 MLP at batch 10, one thread."""
    torch.set_num_threads(1)
    return methods("MLP, batch 10", MLP_FLAGS, 6000, (1, 28, 28), Augment())


def methods_resnet() -> list[Figure]:
    """ResNet-18 on CIFAR-sized images at batch 32, all cores."""
    torch.set_num_threads(os.cpu_count())
    flags = {"backbone": "resnet18", "batch_size": 32}
    return methods("ResNet-18, batch 32", flags, 128 * 2, (3, 32, 32), CIFAR)


def scaling() -> list[Figure]:
    """Measure a step against tasks learned, memory slots and classes: MLP, batch 10, one thread."""
    torch.set_num_threads(1)
    return [*over_tasks(), *over_sizes()]


def over_tasks() -> list[Figure]:
    """A step in the twentieth task against one in the second."""
    source, figures = random_source(20 * 1000, 40, (1, 28, 28), n_classes=40), []
    for name in SCALING:
        flags = {"buffer_size": 5120} if name == "gem" else METHODS[name].flags
        early, late = (Stream(name, MLP_FLAGS | flags, 20, task, source, Augment()) for task in (EARLY, LATE))
        passes = f"; gradients per step: {EARLY + 1} and {LATE + 1}" if name == "gem" else ""
        figures.append(against(f"cost against T, {name}: task 20 / task 2", late, early, passes))
    return figures


def over_sizes() -> list[Figure]:
    """Replay from a hundred times as large a memory; a hundred times as many classes."""
    source = random_source(20_000, 1000, (1, 28, 28))
    small, large = (
        Stream("er", MLP_FLAGS | {"buffer_size": n}, 2, 1, source, Augment()) for n in (200, 20_000)
    )
    for stream in (small, large):  # full before it is timed
        stream.epoch(), stream.epoch()
    memory = against("cost against the memory, er: 20,000 slots / 200", large, small)
    many = random_source(20_000, 1000, (1, 28, 28), n_classes=1000)
    few, lots = (Stream("er", MLP_FLAGS | METHODS["er"].flags, 2, 1, s, Augment()) for s in (source, many))
    return [memory, against("cost against classes, er: 1,000 / 10", lots, few)]


def against(name: str, late: Stream, early: Stream, remark: str = "") -> Figure:
    """A step of one stream beside one of another."""
    seconds, before, ratio = alternate(late.epoch, early.epoch, rounds=5)
    before_us, after_us = 1e6 * before / early.n_steps, 1e6 * seconds / late.n_steps
    text = f"{name} = {ratio:.3f}  (a step: {before_us:.0f} and {after_us:.0f} µs{remark})"
    return Figure(name, text, {"ratio": ratio, "before_us": before_us, "after_us": after_us})
