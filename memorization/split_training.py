"""Training on random halves: the work of train_splits, cut into jobs of networks trained as one."""

import functools
from dataclasses import dataclass

import torch

from engram.memorization import study_data, subsets, training, worker_pool
from engram.memorization.store import NetworkStore
from engram.memorization.study_data import StudyData
from engram.memorization.train_splits import SplitsConfig
from engram.memorization.worker_pool import JobFunction, NetworkProgress, Report


@dataclass(frozen=True)
class SplitsPlan:
    """Which networks each job trains: job j has the repeats from j · stack on, trained as one."""

    config: SplitsConfig
    stack: int

    def repeats(self, job: int) -> list[int]:
        """The networks of a job."""
        return worker_pool.job_members(job, self.stack, self.config.splits.n_repeats)

    def prepare(self, device: torch.device) -> JobFunction:
        """Load the examples once for all jobs of a process."""
        data = study_data.load(self.config.data, device, self.config.pixels)
        return functools.partial(self.run_job, data)

    def run_job(self, data: StudyData, job: int, report: Report) -> None:
        """Train and store those of a job's networks that are missing."""
        splits = self.config.splits
        store = NetworkStore(splits.weights_dir)
        missing = [repeat for repeat in self.repeats(job) if not store.holds("networks", repeat)]
        repeats = training.networks_to_train(missing, store.checkpoint(job))
        labels = data.labels.cpu().numpy()
        halves = [torch.from_numpy(subsets.half(labels, r, splits.subset_ratio)) for r in repeats]
        learner = training.CohortTraining(self.config, data, repeats, torch.stack(halves))
        training.train_to_end(
            learner, store.checkpoint(job), self.config.machine.checkpoint_every,
            lambda share: report(share * len(missing)),
        )  # fmt: skip
        for repeat, weights in zip(repeats, learner.stack.state_dicts(), strict=True):
            if repeat in missing:
                store.save(repeat, weights)
        store.checkpoint(job).unlink(missing_ok=True)


def train_missing(config: SplitsConfig) -> None:
    """Train the networks that are missing in --weights_dir, in one process or several."""
    splits = config.splits
    store, n = NetworkStore(splits.weights_dir), splits.n_repeats
    workers = worker_pool.worker_devices(config.machine, config.network.backbone)
    settings = store.settings()
    if not settings:
        stack = training.study_stack_size(config, len(workers), n, splits.subset_ratio)
        settings = store.claim(config, "n_repeats", stack=stack)
    plan = SplitsPlan(config, settings["stack"])
    missing = store.missing(n)
    progress = NetworkProgress("train_splits", n, n - len(missing))
    worker_pool.run_jobs(plan, worker_pool.jobs_of(missing, plan.stack), workers, progress)
    store.discard_checkpoints(
        lambda job: all(store.holds("networks", r) for r in worker_pool.whole_job(job, plan.stack))
    )
    print(f"networks: {n} in {store.folder} ({plan.stack} trained as one); next: memorization.eval_splits")
