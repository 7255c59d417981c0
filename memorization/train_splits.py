"""Train R networks, each on its own random half of the training set; the raw material of the scores.

    python -m memorization.train_splits --dataset_name mnist --dataset_size 0.1 --weights_dir runs/mem/mnist

Source: Feldman & Zhang 2020 (arXiv 2008.03703), section 2; Kozal et al. 2025 (arXiv 2505.17664),
section 3: the subset of repeat r is scikit-learn's stratified split with random_state r. Interrupted at
any moment, the same command goes on; `--n_repeats` may be raised later.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.cli import MACHINE, STUDY, Options
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class SplitOptions(OptionSet):
    """Which networks, and where they are kept."""

    weights_dir: str | None = option(None, "folder of the trained networks (required)")
    n_repeats: int = option(250, "networks to train", ge=2)
    subset_ratio: float = option(0.5, "share of the examples that a network is trained on", gt=0, lt=1)


GROUPS = {"splits": SplitOptions, **STUDY, **MACHINE}


@dataclass(frozen=True)
class Splits:
    """The plan: job j trains the repeats from j · stack on, as one."""

    options: Options
    stack: int

    def repeats(self, job: int) -> list[int]:
        """The networks of a job."""
        first = job * self.stack
        return list(range(first, min(first + self.stack, self.options.splits.n_repeats)))

    def jobs(self, missing: list[int]) -> list[int]:
        """The jobs in which something is missing."""
        return sorted({repeat // self.stack for repeat in missing})

    def prepare(self, device):
        """Load the examples once for all jobs."""
        import torch

        from engram.memorization import study_data as pools
        from engram.memorization import subsets, training
        from engram.memorization.store import Store

        options = self.options
        pool = pools.load(options, device)
        labels = pool.labels.cpu().numpy()
        store = Store(options.splits.weights_dir)

        def work(job: int, report) -> None:
            repeats = self.repeats(job)
            lacking = [repeat for repeat in repeats if not store.path(repeat).exists()]
            halves = [subsets.half(labels, repeat, options.splits.subset_ratio) for repeat in repeats]
            cohort = training.Cohort(repeats, torch.stack([torch.from_numpy(half) for half in halves]))
            learner, path = training.Training(options, pool, cohort), store.checkpoint(job)
            minutes = options.machine.checkpoint_every
            # a job half saved is trained whole again, so that the cohort and its rounding are the same
            training.complete(learner, path, minutes, lambda share: report(share * len(lacking)))
            for repeat, weights in zip(repeats, learner.stack.networks(), strict=True):
                if repeat in lacking:
                    store.save(repeat, weights)
            path.unlink(missing_ok=True)

        return work


def stack_size(options: Options, n_places: int, n_repeats: int, share: float) -> int:
    """The networks to train as one: as given, else measured on the first device.

    share: of the examples, what a network is trained on at a time.
    """
    from engram.memorization import study_data as pools
    from engram.memorization import training
    from engram.utils.device import choose

    pool = pools.load(options, choose(options.machine.device))
    return training.stack_size(options, pool, int(len(pool) * share), max(1, -(-n_repeats // n_places)))


def run(argv: list[str]) -> None:
    """Train what is missing."""
    options = cli.parse("train_splits", __doc__.split("\n")[0], GROUPS, argv)
    cli.require(options.splits, "weights_dir")
    from engram.memorization import worker_pool
    from engram.memorization.store import Store

    store = Store(options.splits.weights_dir)
    where = worker_pool.places(options.machine, options.network.model_name)
    known, n = store.settings(), options.splits.n_repeats
    if not known:
        stack = stack_size(options, len(where), n, options.splits.subset_ratio)
        known = store.claim(options, "n_repeats", stack=stack)
    plan = Splits(options, known["stack"])
    missing = store.missing(n)
    bar = worker_pool.Bar("train_splits", n, n - len(missing))
    worker_pool.run(plan, plan.jobs(missing), where, bar)
    print(f"networks: {n} in {store.folder} ({plan.stack} trained as one); next: memorization.eval_splits")


if __name__ == "__main__":
    sys.exit(cli.main(run))
