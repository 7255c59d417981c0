"""Tasks as the data has them: a stream whose samples say which task or domain they belong to."""

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.datasets import scenarios
from engram.datasets.augment import Augment, as_asked
from engram.datasets.benchmark import Benchmark, Task
from engram.datasets.sources import Source
from engram.datasets.streams import (
    scenario_of,
    stored,
    train_classes_of,
    with_own_outputs,
    with_same_outputs,
    with_validation,
)
from engram.utils.config.config import Config
from engram.utils.errors import DataError


def check_count(n_tasks: int, n_groups: int, kind: str, path: object) -> None:
    """Raise `DataError` unless --n_tasks is the number of groups, domains or tasks, that the data has."""
    if n_tasks != n_groups:
        raise DataError(f"--n_tasks {n_tasks}: {path} has {n_groups} {kind}s; give that number")


def given_tasks(
    name: str,
    source: Source,
    task_of: tuple[Tensor, Tensor],
    augment: Augment,
    config: Config,
    device: torch.device | str,
    domains: bool | None = None,
) -> Benchmark:
    """The benchmark whose task t has the samples with `task_of` t, in both splits.

    task_of: (N,) and (M,), from 0 on. domains: whether all tasks share all classes (domain-IL) or each has
    its own (class-IL); None decides: class-IL where no class is in two tasks.
    """
    (of_train, of_test), percent, seed = task_of, config.stream.validation, config.run.seed
    classes_of = _classes_of(source, task_of, held_out=bool(percent))
    if domains is None:
        domains = len(classes_of) == 1 or _overlap(classes_of)
    scenarios.refuse_order(config.stream.class_order, name, "whose tasks are as the data has them")
    augment = as_asked(augment, config, source.train_x.shape[1:])
    strata, n_classes = of_train if domains else source.train_y, len(source.classes)
    source, positions = with_validation(stored(source, config, device), percent, seed, strata)
    training = torch.from_numpy(positions)
    if percent:
        of_test = of_train[torch.from_numpy(np.setdiff1d(np.arange(len(of_train)), positions))]
    labels = [tuple(range(n_classes))] * len(classes_of) if domains else _consecutive(classes_of)
    tasks = [
        Task(i, classes, (i,), training[of_train[training] == i], torch.nonzero(of_test == i).view(-1))
        for i, classes in enumerate(labels)
    ]
    scenario = scenario_of(config, "domain-il" if domains else "class-il")
    if scenario == "class-il" and domains:
        tasks = with_own_outputs(tasks)
    if scenario == "domain-il" and not domains:
        tasks = with_same_outputs(tasks)
    order = np.arange(n_classes) if domains else _order(classes_of, n_classes)
    trained = train_classes_of(config, scenario)
    return Benchmark(name, scenario, source, tasks, augment, order, seed, device, train_classes=trained)


def _classes_of(source: Source, task_of: tuple[Tensor, Tensor], held_out: bool) -> list[list[int]]:
    """The labels of each task, ascending; held_out: of the training samples alone."""
    splits = list(zip(source.labels, task_of, strict=True))[: 1 if held_out else 2]
    tasks = range(int(task_of[0].max()) + 1)
    return [torch.cat([y[tasks_of == i] for y, tasks_of in splits]).unique().tolist() for i in tasks]


def _overlap(classes_of: list[list[int]]) -> bool:
    """Whether a class is in two tasks."""
    return sum(map(len, classes_of)) > len(set(itertools.chain(*classes_of)))


def _consecutive(classes_of: list[list[int]]) -> list[tuple[int, ...]]:
    """The labels of each task when classes are numbered in the order of the tasks."""
    ends = list(itertools.accumulate(map(len, classes_of), initial=0))
    return [tuple(range(*ends_of_task)) for ends_of_task in itertools.pairwise(ends)]


def _order(classes_of: list[list[int]], n_classes: int) -> NDArray[np.int64]:
    """The source's class at each of these numbers, (n_classes,); classes that no task has come last."""
    order = np.array(list(itertools.chain(*classes_of)))
    return np.concatenate([order, np.setdiff1d(np.arange(n_classes), order)])
