"""Which training samples a run learns from, with which labels: --exclude, --label_perc, --noise_rate."""

from dataclasses import replace

import torch
from torch import Tensor

from engram.datasets import scenarios
from engram.datasets.benchmark import Benchmark
from engram.utils.errors import UserError


def exclude(benchmark: Benchmark, positions: Tensor) -> None:
    """Leave these positions of the source out of every task's training samples."""
    for i, task in enumerate(benchmark.tasks):
        remaining = task.train_index[~torch.isin(task.train_index, positions)]
        if not len(remaining):
            raise UserError(f"--exclude leaves task {task.id} no training sample")
        benchmark.tasks[i] = replace(task, train_index=remaining)


def keep_labelled(benchmark: Benchmark, share: float) -> None:
    """Leave out of every task the training samples that have no label where a share of each class has."""
    y = benchmark.source_labels.numpy()
    for i, task in enumerate(benchmark.tasks):
        positions = scenarios.labelled(task.train_index.numpy(), y, share, benchmark.seed, task.id)
        benchmark.tasks[i] = replace(task, train_index=torch.from_numpy(positions))


def add_label_noise(benchmark: Benchmark, rate: float) -> None:
    """Give a share of each class's training samples the label of another class of their task."""
    others: dict[int, list[int]] = {}
    for task in benchmark.tasks:
        classes = [c - task.label_shift for c in task.classes]
        if len(classes) == 1:
            raise UserError(f"--noise_rate: task {task.id} has one class, so there is no wrong label")
        others |= {c: [other for other in classes if other != c] for c in classes}
    index = torch.cat([task.train_index for task in benchmark.tasks]).unique()
    y = benchmark.train_labels
    noisy = scenarios.noisy_labels(index.numpy(), y.numpy(), others, rate, benchmark.seed)
    benchmark.train_labels = torch.from_numpy(noisy)
    n_wrong = int((benchmark.train_labels != y)[index].sum())
    benchmark.transforms = {**benchmark.transforms, "wrong_labels": [n_wrong]}
    benchmark.notes.append(f"{n_wrong} of {len(index)} training labels are wrong (--noise_rate {rate:g})")
