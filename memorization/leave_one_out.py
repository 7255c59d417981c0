"""Leave-one-out scores: the work of train_whole.

Networks are numbered through: `--n_whole` on everything, then the repeats of the first example chosen,
then those of the second, and so on; a job trains `stack` neighbours of one kind as one.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.memorization import study_data, training, worker_pool
from engram.memorization.estimator import memorization
from engram.memorization.outputs import outputs
from engram.memorization.store import NetworkStore
from engram.memorization.study_data import StudyData
from engram.memorization.train_whole import WholeConfig
from engram.memorization.worker_pool import JobFunction, NetworkProgress, Report
from engram.utils import checkpoint, device, scores

WHOLE, LEFT_OUT = "whole", "left_out"  # folders of results
CHOICE_SEED = 42  # of the order in which examples are taken


@dataclass(frozen=True)
class LeaveOneOutPlan:
    """Which networks each job trains: first those on everything, then those with one example left out."""

    config: WholeConfig
    stack: int

    def jobs(self, n_examples: int) -> dict[int, list[int]]:
        """Job → numbers of its networks, where `n_examples` are left out in turn."""
        n_whole = self.config.whole.n_whole
        n_networks = n_whole + n_examples * self.config.whole.n_repeats
        numbers = [range(i, min(i + self.stack, n_whole)) for i in range(0, n_whole, self.stack)]
        numbers += [range(i, min(i + self.stack, n_networks)) for i in range(n_whole, n_networks, self.stack)]
        return {job: list(members) for job, members in enumerate(numbers)}

    def n_examples(self, n: int) -> int:
        """How many examples of `n` are left out in turn."""
        return min(self.config.whole.n_examples or n, n)

    def missing(self, numbers: list[int]) -> list[int]:
        """Those of these networks that have no result yet."""
        return [number for number in numbers if not os.path.lexists(self.result(number))]

    def result(self, number: int) -> Path:
        """The file of a network's outputs."""
        whole = self.config.whole
        kind = WHOLE if number < whole.n_whole else LEFT_OUT
        return NetworkStore(whole.weights_dir).result(kind, number)

    def prepare(self, device: torch.device) -> JobFunction:
        """Load the examples once for all jobs of a process."""
        data = study_data.load(self.config.data, device, self.config.pixels)
        return functools.partial(self.run_job, data, self.jobs(self.n_examples(len(data))))

    def run_job(self, data: StudyData, jobs: dict[int, list[int]], job: int, report: Report) -> None:
        """Train a job's missing networks and write their outputs: on all examples, or on the one left out."""
        missing, path = self.missing(jobs[job]), NetworkStore(self.config.whole.weights_dir).checkpoint(job)
        numbers = training.networks_to_train(missing, path)
        left_out = self.left_out(numbers, len(data))
        learner = training.CohortTraining(self.config, data, numbers, remaining(left_out, numbers, len(data)))
        training.train_to_end(
            learner, path, self.config.machine.checkpoint_every, lambda share: report(share * len(missing))
        )
        loss, correct = outputs(learner.stack, data.images, data.labels, data.augment)
        if left_out:
            columns = torch.tensor(left_out).view(-1, 1)
            loss, correct = loss.gather(1, columns), correct.gather(1, columns)
        for k, number in enumerate(numbers):
            result = {"loss": loss[k].clone(), "correct": correct[k].clone()}
            checkpoint.write(result, self.result(number))
        path.unlink(missing_ok=True)

    def left_out(self, numbers: list[int], n: int) -> list[int]:
        """The row that each of these networks leaves out of `n`; empty for networks on everything."""
        whole, order = self.config.whole, example_order(n)
        return [int(order[(i - whole.n_whole) // whole.n_repeats]) for i in numbers if i >= whole.n_whole]


def remaining(left_out: list[int], numbers: list[int], n: int) -> Tensor:
    """The rows (K, n) or (K, n − 1) of the data that each network is trained on."""
    rows = torch.arange(n)
    if not left_out:
        return rows.expand(len(numbers), -1)
    return torch.stack([torch.cat((rows[:i], rows[i + 1 :])) for i in left_out])


def example_order(n: int) -> NDArray[np.int64]:
    """The order in which examples are left out, (n,) rows of the data."""
    return np.random.RandomState(CHOICE_SEED).permutation(n)


def train_and_write(config: WholeConfig) -> None:
    """Train the networks that are missing, then estimate the scores and write them."""
    whole, store = config.whole, NetworkStore(config.whole.weights_dir)
    data = study_data.load(config.data, device.choose(config.machine.device), config.pixels)
    workers = worker_pool.worker_devices(config.machine, config.network.backbone)
    settings = store.settings()
    if not settings:
        at_most = max(1, min(whole.n_examples or len(data), len(data)) * whole.n_repeats // len(workers))
        stack = training.stack_size(config, data, len(data), at_most)
        settings = store.claim(config, "n_examples", "out_filename", stack=stack)
    plan = LeaveOneOutPlan(config, settings["stack"])
    n_examples = plan.n_examples(len(data))
    missing = {job: plan.missing(numbers) for job, numbers in plan.jobs(n_examples).items()}
    open_jobs = [job for job, numbers in missing.items() if numbers]
    total, n_missing = whole.n_whole + n_examples * whole.n_repeats, sum(map(len, missing.values()))
    progress = NetworkProgress("train_whole", total, total - n_missing)
    worker_pool.run_jobs(plan, open_jobs, workers, progress)
    jobs = plan.jobs(len(data))
    store.discard_checkpoints(lambda job: job in jobs and not plan.missing(jobs[job]))
    torch.set_num_threads(1)
    write(plan, data, n_examples, {**settings, "n_whole": whole.n_whole})


def write(plan: LeaveOneOutPlan, data: StudyData, n_examples: int, settings: dict[str, Any]) -> None:
    """Estimate scores and standard errors of the examples left out and write the file."""
    whole, rows = plan.config.whole, example_order(len(data))[:n_examples]
    on_everything = [checkpoint.read(plan.result(i)) for i in range(whole.n_whole)]
    numbers = range(whole.n_whole, whole.n_whole + n_examples * whole.n_repeats)
    left_out = [checkpoint.read(plan.result(i)) for i in numbers]
    arrays: dict[str, NDArray[np.float64]] = {}
    for suffix, name in (("", "loss"), ("_01", "correct")):
        inside = np.stack([np.asarray(r[name].double())[rows] for r in on_everything])
        outside = np.stack([np.asarray(r[name].double()) for r in left_out]).reshape(n_examples, -1).T
        if name == "loss":
            inside, outside = np.exp(-inside), np.exp(-outside)
        member = np.repeat([[True], [False]], (len(inside), len(outside)), axis=0)
        estimate = memorization(np.concatenate((inside, outside)), np.tile(member, n_examples))
        arrays |= {
            f"scores{suffix}": estimate.scores, f"stderr{suffix}": estimate.stderr,
            f"mean_in{suffix}": estimate.mean_in, f"mean_out{suffix}": estimate.mean_out,
        }  # fmt: skip
        if name == "loss":
            arrays["ci95"] = estimate.ci95
    error, half_width = np.median(arrays["stderr"]), np.median(arrays["ci95"])
    identity = data.identity() | {"index": data.index[rows], "labels": data.labels.cpu().numpy()[rows]}
    path = scores.write(whole.out_filename, settings, **identity, **arrays)
    print(
        f"{n_examples} examples of {plan.config.data.dataset} left out: mean memorization "
        f"{arrays['scores'].mean():.4f}, median standard error {error:.4f}, "
        f"median 95 % interval ± {half_width:.4f}\n"
        f"scores: {path}"
    )
