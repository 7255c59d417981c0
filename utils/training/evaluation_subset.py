"""The test samples that an evaluation before the end of the run takes: `--eval_tasks`, `--eval_samples`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.utils import seeding
from engram.utils.config.config import Config
from engram.utils.metrics import sampling
from engram.utils.training.ports import StreamTask


class EvaluationSubset(NamedTuple):
    """Some of the test samples of the stream's tasks, T in all."""

    positions: Tensor  # (K,) ascending positions among the test samples of all tasks, in task order
    counts: Tensor  # (T,) how many of them each task has


def draw_subset(
    tasks: Sequence[StreamTask], config: Config, n_seen: int, n_tasks: int
) -> EvaluationSubset | None:
    """What is evaluated of the first `n_tasks` tasks once `n_seen` are learned or begun; None is everything.

    `--eval_tasks` of the earlier tasks are drawn, anew for each task that is learned, beside that task, which
    the diagonal of R needs, and the next one, which forward transfer needs; so before the first task
    (`n_seen` 0) all are measured. `--eval_samples` are drawn once for each task, so that its accuracies at
    different times compare.
    """
    options, seed = config.log, config.run.seed
    if not (options.eval_samples or (options.eval_tasks and n_seen)):
        return None
    chosen = set(range(n_tasks))
    if options.eval_tasks and n_seen:
        draws = seeding.generator(seed, "evaluated tasks", n_seen - 1)
        earlier = torch.randperm(n_seen - 1, generator=draws)[: options.eval_tasks]
        chosen &= {*earlier.tolist(), n_seen - 1, n_seen}
    positions, counts, start = [], torch.zeros(len(tasks), dtype=torch.long), 0
    for task in tasks:
        n_samples = len(task.test_index)
        if task.id in chosen:
            positions.append(start + _samples(task.id, n_samples, options.eval_samples, seed))
            counts[task.id] = len(positions[-1])
        start += n_samples
    return EvaluationSubset(torch.cat(positions), counts)


def standard_errors(
    accuracies: NDArray[np.float64], tasks: Sequence[StreamTask], subset: EvaluationSubset | None
) -> NDArray[np.float64]:
    """(n, 2) of accuracies (n, 2) on the first n tasks, from the choice of samples; 0 without a subset."""
    whole = torch.tensor([len(task.test_index) for task in tasks])
    counts = subset.counts if subset else whole
    n = len(accuracies)
    return sampling.standard_errors(accuracies, counts[:n].view(-1, 1), whole[:n].view(-1, 1))


def _samples(task: int, n_samples: int, n_wanted: int, seed: int) -> Tensor:
    """Ascending positions of the task's evaluated samples among its `n_samples`; `n_wanted` 0 is all."""
    if not 0 < n_wanted < n_samples:
        return torch.arange(n_samples)
    draws = seeding.generator(seed, "evaluated samples", task)
    return torch.randperm(n_samples, generator=draws)[:n_wanted].sort().values
