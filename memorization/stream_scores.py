"""Scores of examples over a stream of tasks: the work of train_stream."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engram.datasets import scenarios
from engram.memorization import study_data, subsets, training, worker_pool
from engram.memorization.estimator import memorization
from engram.memorization.store import NetworkStore
from engram.memorization.stream import StreamTraining, TaskClasses, TaskRows, halves, task_of
from engram.memorization.study_data import StudyData
from engram.memorization.train_stream import StreamConfig
from engram.memorization.worker_pool import JobFunction, NetworkProgress, Report
from engram.utils import checkpoint, scores
from engram.utils.errors import UserError

RESULTS = "stream"  # the folder of what each network gives, below --weights_dir
VIEWS = {"": "class-IL (among the classes met so far)", "task_il_": "task-IL (among those of the own task)"}
FLOOR = 0.01  # a probability below which no memorization can show
OUTPUTS = ("loss", "task_loss", "correct")  # what a network gives for each example after each task
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StreamPlan:
    """Which networks each job trains: job j has the repeats from j · stack on, trained as one."""

    config: StreamConfig
    stack: int

    def prepare(self, device: torch.device) -> JobFunction:
        """Load the examples once for all jobs of a process."""
        data = study_data.load(self.config.data, device, self.config.pixels)
        return functools.partial(self.run_job, data)

    def run_job(self, data: StudyData, job: int, report: Report) -> None:
        """Let a job's missing networks follow the stream and write what each gives after each task."""
        members = worker_pool.job_members(job, self.stack, self.config.stream.n_repeats)
        store, classes = NetworkStore(self.config.stream.weights_dir), task_classes(self.config, data)
        missing = [repeat for repeat in members if not store.holds(RESULTS, repeat)]
        repeats = training.networks_to_train(missing, store.checkpoint(job))
        rows = task_halves(self.config, data, repeats, classes)
        learner = StreamTraining(self.config, data, repeats, rows, classes)
        training.train_to_end(
            learner, store.checkpoint(job), self.config.machine.checkpoint_every,
            lambda share: report(share * len(missing)),
        )  # fmt: skip
        for k, repeat in enumerate(repeats):
            outputs = {name: values[:, k].clone() for name, values in learner.outputs.items()}
            checkpoint.write({"repeat": repeat, **outputs}, store.result(RESULTS, repeat))
        store.checkpoint(job).unlink(missing_ok=True)


def task_classes(config: StreamConfig, data: StudyData) -> TaskClasses:
    """The classes of each task, by their original labels."""
    first, last = scores.parse_range(config.data.class_range, len(data.class_names))
    stream, n = config.stream, last - first
    order = first + scenarios.class_order(n, config.recipe.seed, stream.permute_classes)
    return [tuple(int(order[c]) for c in task) for task in scenarios.split_classes(n, stream.n_tasks)]


def task_halves(config: StreamConfig, data: StudyData, repeats: list[int], classes: TaskClasses) -> TaskRows:
    """For each task the rows (K, n) of the data that the networks see."""
    ratio = config.stream.subset_ratio
    return halves(data, repeats, classes, lambda labels, seed: subsets.half(labels, seed, ratio))


def train_and_write(config: StreamConfig) -> None:
    """Train the networks that are missing, then estimate the scores and write them."""
    stream = config.stream
    store, n = NetworkStore(stream.weights_dir), stream.n_repeats
    workers = worker_pool.worker_devices(config.machine, config.network.backbone)
    settings = store.settings()
    if not settings:
        stack = training.study_stack_size(config, len(workers), n, stream.subset_ratio / stream.n_tasks)
        settings = store.claim(config, "n_repeats", "out_filename", "store_probs", stack=stack)
    plan = StreamPlan(config, settings["stack"])
    missing = [repeat for repeat in range(n) if not store.holds(RESULTS, repeat)]
    for repeat in set(range(n)) - set(missing):  # refused now, and not when the others have been trained
        read_outputs(store.result(RESULTS, repeat), repeat)
    progress = NetworkProgress("train_stream", n, n - len(missing))
    worker_pool.run_jobs(plan, worker_pool.jobs_of(missing, plan.stack), workers, progress)
    store.discard_checkpoints(
        lambda job: all(store.holds(RESULTS, r) for r in worker_pool.whole_job(job, plan.stack))
    )
    write(config, store, {**settings, "n_networks": n})


def write(config: StreamConfig, store: NetworkStore, settings: dict[str, Any]) -> None:
    """Estimate the scores after each task, write the file and print a summary."""
    repeats = list(range(config.stream.n_repeats))
    data = study_data.load(config.data, torch.device("cpu"))
    classes = task_classes(config, data)
    member = np.zeros((len(repeats), len(data)), dtype=bool)
    for rows in task_halves(config, data, repeats, classes):
        np.put_along_axis(member, rows.numpy(), True, axis=1)
    shape = (len(classes), len(data))
    results = [read_outputs(store.result(RESULTS, repeat), repeat, shape) for repeat in repeats]
    outputs = {name: np.stack([result[name] for result in results], axis=1) for name in OUTPUTS}
    task = task_of(data.labels, classes).numpy()
    arrays = scores_over_time(outputs, member)
    examples = np.arange(len(data))
    arrays["scores"] = arrays["in_stream"][task, examples]
    arrays["stderr"] = arrays["in_stream_stderr"][task, examples]
    if np.isnan(arrays["scores"]).all():
        raise UserError("no example was in two subsets and in two not; let more networks follow")
    if config.stream.store_probs:
        arrays |= {
            "loss_over_time": outputs["loss"], "task_loss_over_time": outputs["task_loss"], "member": member,
        }  # fmt: skip
    path = scores.write(config.stream.out_filename, settings, task=task, **arrays, **data.identity())
    print(summary(arrays, task))
    print(f"scores: {path}")


def read_outputs(path: Path, repeat: int, shape: tuple[int, int] | None = None) -> Arrays:
    """What the network of a repeat gave, by name; shape: (T, n) of each.

    A file from before repeats were named is taken; raises `UserError` for anything else.
    """
    content = checkpoint.read(path)
    outputs = {name: content.get(name) for name in OUTPUTS}
    arrays = {name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    whole = len(arrays) == len(OUTPUTS) and all(
        values.shape == (shape or values.shape) for values in arrays.values()
    )
    if not whole or content.get("repeat", repeat) != repeat:
        raise UserError(f"{path}: not the outputs of network {repeat}; remove it and let it follow again")
    return arrays


def scores_over_time(outputs: Arrays, member: NDArray[np.bool_]) -> Arrays:
    """Estimates after each task, (T, n), from outputs (T, R, n)."""
    views = {
        "": np.exp(-outputs["loss"].astype(np.float64)),
        "task_il_": np.exp(-outputs["task_loss"].astype(np.float64)),
        "hit_": outputs["correct"].astype(np.float64),
    }
    arrays: Arrays = {}
    for prefix, values in views.items():
        estimates = [memorization(after_task, member).measured() for after_task in values]
        arrays |= {
            f"{prefix}in_stream": np.stack([e.scores for e in estimates]),
            f"{prefix}in_stream_stderr": np.stack([e.stderr for e in estimates]),
            f"{prefix}mean_in": np.stack([e.mean_in for e in estimates]),
            f"{prefix}mean_out": np.stack([e.mean_out for e in estimates]),
        }
    return arrays


def summary(arrays: Arrays, task: NDArray[np.int64]) -> str:
    """Mean memorization of each task's examples after it and after each later task, in both views, in %."""
    lines = []
    for prefix, view in VIEWS.items():
        lines.append(f"mean memorization in %, {view}; row: task just learned, column: task of the examples")
        for t, values in enumerate(arrays[f"{prefix}in_stream"]):
            lines.append(f"{t:>4}" + "".join(_mean_in_percent(values[task == s]) for s in range(t + 1)))
    return "\n".join([*lines, *floor_warning(arrays["mean_in"][-1], task)])


def _mean_in_percent(values: NDArray[np.float64]) -> str:
    """`   12.3`, the mean over the examples that were measured; a dash where none was."""
    measured = values[~np.isnan(values)]
    return f"{100 * measured.mean():z7.1f}" if len(measured) else "      –"


def floor_warning(mean_in: NDArray[np.float64], task: NDArray[np.int64]) -> list[str]:
    """A line where the class-IL scores of earlier tasks cannot but be 0 at the end of the stream.

    mean_in: (n,) class-IL probability of each label then, by networks that saw the example.
    """
    earlier = mean_in[(task < task.max()) & ~np.isnan(mean_in)]
    if not len(earlier) or earlier.mean() >= FLOOR:
        return []
    return [
        "WARNING: at the end networks give the labels of earlier tasks, among all classes, a probability "
        f"of {earlier.mean():.1e}, whether they saw an example or not: class-IL memorization is at its "
        "floor of 0, which says nothing of what is kept. Read the task-IL view, or give --buffer_size"
    ]
