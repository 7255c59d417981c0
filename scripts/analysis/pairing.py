"""Pairing: comparisons of two settings seed by seed, on the same tasks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engram.scripts.analysis.run_set import Setting, StoredRecord
from engram.utils.metrics.statistics import Paired, paired


@dataclass(frozen=True)
class Comparison:
    """Average accuracy of a setting minus a baseline's, in percentage points, paired by seed."""

    setting: Setting
    baseline: Setting
    test: Paired
    unpaired_seeds: list[int]  # both settings have them, on different tasks
    corrected_p: float = math.nan  # of the test, where several are made


def compare(setting: Setting, baseline: Setting, view: str) -> Comparison:
    """The paired test over the seeds that both settings ran on the same tasks; n may be 0."""
    pairs, unpaired_seeds = pair_runs(setting.runs, baseline.runs)
    ours, theirs = (
        [100 * pair[i].views[view].metric("average_accuracy") for pair in pairs] for i in range(2)
    )
    return Comparison(setting, baseline, paired(ours, theirs), unpaired_seeds)


def pair_runs(
    runs: Sequence[StoredRecord], others: Sequence[StoredRecord]
) -> tuple[list[tuple[StoredRecord, StoredRecord]], list[int]]:
    """Pairs of runs of the same seed and tasks, and the seeds whose two runs had different tasks."""
    by_seed = {run.seed: run for run in others}
    pairs, unpaired_seeds = [], []
    for run in (run for run in runs if run.seed in by_seed):
        other = by_seed[run.seed]
        if _same_tasks(run, other):
            pairs.append((run, other))
        else:
            unpaired_seeds.append(run.seed)
    return pairs, unpaired_seeds


def unpaired_note(comparisons: Iterable[Comparison]) -> str:
    """A sentence that names the seeds that could not be paired; empty if there are none."""
    seeds = sorted({seed for comparison in comparisons for seed in comparison.unpaired_seeds})
    named = ", ".join(map(str, seeds))
    return f"Seeds left out where the two runs had different tasks: {named}." if named else ""


def _same_tasks(run: StoredRecord, other: StoredRecord) -> bool:
    if not (run.class_order and other.class_order):  # imported logs do not have their classes
        return True
    return _tasks(run) == _tasks(other)


def _tasks(run: StoredRecord) -> list[list[int]]:
    """The original classes of each task; in domain-IL in the order of the outputs that the tasks share."""
    order = run.class_order or []
    half = bool(run.config.get("half_classes_in_first_task"))
    n_first = half * (len(order) // 2)
    rest = np.array_split(order[n_first:], run.n_tasks - half)
    tasks = [order[:n_first], *(task.tolist() for task in rest)]
    return [task if run.scenario == "domain-il" else sorted(task) for task in tasks]
