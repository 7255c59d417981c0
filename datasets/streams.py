"""Streams: how a data set becomes a benchmark, its classes split over tasks or changed by every task.

`class_incremental` and `domain_incremental` are what a benchmark's file calls; `--scenario`, `--validation`
and `--images` are obeyed here, for all benchmarks alike.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.datasets import lazy_images, scenarios
from engram.datasets.augment import Augment, as_asked
from engram.datasets.benchmark import Benchmark, Task
from engram.datasets.images import Put
from engram.datasets.lazy_images import LazyImages, Transform
from engram.datasets.sources import Source
from engram.datasets.storage import Storage, on_disk
from engram.utils.config import registry
from engram.utils.config.config import Config
from engram.utils.errors import UserError

CHUNK_BYTES = 64 << 20  # images hashed and written at once


def class_incremental(
    name: str,
    source: Source,
    augment: Augment,
    config: Config,
    device: torch.device | str,
    groups: list[str] | None = None,
) -> Benchmark:
    """Classes split over tasks: task t owns consecutive labels of the (permuted) class order.

    groups: the group of each class (its alphabet); task t then owns the t-th group instead of an equal
    share, and `--permute_classes` permutes the groups.
    """
    stream, seed = config.stream, config.run.seed
    augment = as_asked(augment, config, source.train_x.shape[1:])
    if groups:
        scenarios.refuse_order(stream.class_order, name, "whose tasks are groups of classes")
        order = scenarios.group_order(groups, seed, stream.permute_classes)
        split = scenarios.split_groups([groups[c] for c in order], stream.n_tasks)
    else:
        order = scenarios.class_order(len(source.classes), seed, stream.permute_classes, stream.class_order)
        split = scenarios.split_classes(len(order), stream.n_tasks, stream.half_classes_in_first_task)
    source, training = with_validation(stored(source, config, device), stream.validation, seed)
    train_y, test_y = (scenarios.relabel(y.numpy(), order) for y in source.labels)
    tasks = []
    for i, classes in enumerate(split):
        train = np.intersect1d(scenarios.positions_of(train_y, classes), training, assume_unique=True)
        test = scenarios.positions_of(test_y, classes)
        tasks.append(Task(i, classes, (i,), torch.from_numpy(train), torch.from_numpy(test)))
    scenario = scenario_of(config, "class-il")
    if scenario == "domain-il":
        tasks = with_same_outputs(tasks)
    trained = train_classes_of(config, scenario)
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device, train_classes=trained)


def domain_incremental(
    name: str,
    source: Source,
    augment: Augment,
    transforms: Sequence[Transform],
    config: Config,
    device: torch.device | str,
    drawn: Mapping[str, Sequence[object]] | None = None,
    samples_per_task: int = 0,
) -> Benchmark:
    """The same classes in every task, each task's images changed by its own transform.

    transforms: raw uint8 images → the task's, one for each task. drawn: the angles or permutations that they
    were made from, to be saved with the run. samples_per_task: at most so many training samples for each
    task, its own random choice (0: all).
    """
    stream, seed = config.stream, config.run.seed
    augment = as_asked(augment, config, source.train_x.shape[1:])
    scenarios.refuse_order(stream.class_order, name, "whose tasks have all classes")
    order = scenarios.class_order(len(source.classes), seed, permute=False)
    source, training = with_validation(stored(source, config, device), stream.validation, seed)
    test, classes = torch.arange(len(source.test_y)), tuple(range(len(source.classes)))
    tasks = []
    for i, transform in enumerate(transforms):
        train = torch.from_numpy(scenarios.subset(training, samples_per_task, seed, i))
        tasks.append(Task(i, classes, (i,), train, test, transform))
    scenario = scenario_of(config, "domain-il")
    if scenario == "class-il":
        tasks = with_own_outputs(tasks)
    trained = train_classes_of(config, scenario)
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device, drawn, trained)


def scenario_of(config: Config, default: str) -> str:
    """The scenario that --scenario or --multi_head asks for, else the benchmark's own."""
    return config.stream.scenario or ("task-il" if config.stream.multi_head else default)


def scenario_flag(config: Config) -> str:
    """The flag that asks for the scenario, as it was given; empty where the benchmark's own is in force."""
    if config.stream.multi_head:
        return "--multi_head"
    return f"--scenario {config.stream.scenario}" if config.stream.scenario else ""


def train_classes_of(config: Config, scenario: str) -> str:
    """What --train_classes says; it is refused outside class-IL, where a task's classes are all there are.

    A method's own choice is not refused there: it comes to the same as all.
    """
    classes = config.stream.train_classes
    if scenario != "class-il" and classes == registry.method_defaults(config.run.model).get("train_classes"):
        return "all"
    if classes != "all" and scenario != "class-il":
        raise UserError(
            f"--train_classes {classes} chooses among the classes of a class-il stream, and this one is "
            f"{scenario}; leave it out"
        )
    return classes


def with_same_outputs(tasks: list[Task]) -> list[Task]:
    """Tasks of different classes as domains of one problem: each one's first class is output 0, and so on."""
    sizes = {len(task.classes) for task in tasks}
    if len(sizes) > 1:
        raise UserError(
            f"--scenario domain-il: all tasks need equally many classes; with --n_tasks {len(tasks)} "
            f"they have {min(sizes)} to {max(sizes)}"
        )
    same = tuple(range(sizes.pop()))
    return [replace(task, classes=same, label_shift=-task.classes[0]) for task in tasks]


def with_own_outputs(tasks: list[Task]) -> list[Task]:
    """Tasks that share their classes with outputs of their own: task t's class c is output t · C + c."""
    n = len(tasks[0].classes)
    shifted = (tuple(task.id * n + c for c in task.classes) for task in tasks)
    return [
        replace(task, classes=classes, label_shift=classes[0])
        for task, classes in zip(tasks, shifted, strict=True)
    ]


def with_validation(
    source: Source, percent: float, seed: int, strata: Tensor | None = None
) -> tuple[Source, NDArray[np.int64]]:
    """The source whose test set is `percent` % of the training set, and the positions left for training.

    With 0 % the real test set stays; otherwise nothing downstream can reach it. strata: (N,), the groups
    that the share is taken from each; the labels by default.
    """
    if not percent:
        return source, np.arange(len(source.train_y))
    strata = source.train_y if strata is None else strata
    try:
        training, held_out = scenarios.hold_out(strata.numpy(), percent, seed)
    except ValueError as error:  # a share of less than one sample per class
        raise UserError(f"--validation {percent}: cannot be taken from every class: {error}") from error
    rows = torch.from_numpy(held_out)
    test_x = cast(Tensor, lazy_images.select(source.train_x, rows))  # lazy images stand for a tensor
    return replace(source, test_x=test_x, test_y=source.train_y[rows]), training


def stored(source: Source, config: Config, device: torch.device | str) -> Source:
    """The source, its images moved to disk where the run's configuration says so (--images).

    Under --validation the test set is left alone: not even its size is looked at.
    """
    if isinstance(source.train_x, LazyImages):
        return source
    if source.train_x.dtype != torch.uint8 or source.train_x.dim() != 4:
        if config.run.images == "disk":
            raise UserError("--images disk: for images with pixels 0 to 255; these samples stay in memory")
        return source
    storage = Storage.configured(config, device)
    splits = ("train",) if config.stream.validation else ("train", "test")
    images, labels = ({s: getattr(source, f"{s}_{field}") for s in splits} for field in "xy")
    reason = storage.reason_for_disk(sum(x.numel() for x in images.values()))
    if not reason:
        return source
    channels, height, width = source.train_x.shape[1:]
    shape = (channels, height, width)
    size = max(1, CHUNK_BYTES // prod(shape))
    digest = hashlib.blake2b(repr((shape, source.classes)).encode(), digest_size=32)
    for tensor in (*images.values(), *labels.values()):
        for chunk in tensor.split(size):
            digest.update(chunk.contiguous().numpy().data)

    def fill(split: str, put: Put) -> None:
        for i, chunk in enumerate(images[split].split(size)):
            put(i * size, chunk.numpy())

    key = digest.hexdigest()
    data = on_disk(storage.folder(source.name, key), key, shape, source.classes, labels, fill, reason)
    if config.stream.validation:
        return replace(source, train_x=data["train_x"])
    return replace(source, train_x=data["train_x"], test_x=data["test_x"])
