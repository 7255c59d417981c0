"""Leave-one-out memorization: networks trained on everything, and on everything but one example.

    python -m memorization.train_whole --dataset_name digits --n_examples 50 --weights_dir runs/mem/loo \
        --out_filename runs/mem/loo.npz

Source: Feldman & Zhang 2020 (arXiv 2008.03703), eq. 1, by its definition:
mem(i) = E[p(label of i) | trained on all] − E[p(label of i) | trained on all but i]. Clean images,
evaluation mode, `--n_repeats` networks for each example and `--n_whole` on everything, standard errors
over networks. Costs examples × repeats networks; train_splits costs a few hundred for all examples.
Differs from the memorization paper's script: several networks for each example instead of one, a clean
view instead of a randomly augmented one. Interrupted, the same command goes on; --n_examples may grow.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.cli import MACHINE, STUDY, Options
from engram.utils.config.options import OptionSet, option

WHOLE, LEFT_OUT = "whole", "left_out"  # folders of results
CHOICE_SEED = 42  # of the order in which examples are taken


@dataclass(frozen=True)
class WholeOptions(OptionSet):
    """Which examples, how many networks."""

    weights_dir: str | None = option(None, "folder of the results by network (required)")
    out_filename: str | None = option(None, "score file to write, .npz or .npy (required)")
    n_examples: int = option(50, "examples left out in turn, a random choice; 0: all", ge=0)
    n_repeats: int = option(3, "networks for each example left out", ge=2)
    n_whole: int = option(16, "networks trained on everything", ge=2)


GROUPS = {"whole": WholeOptions, **STUDY, **MACHINE}


@dataclass(frozen=True)
class LeaveOneOut:
    """The plan: the first jobs train networks on everything, the others networks with one example left out.

    Networks are numbered through: n_whole on everything, then the repeats of the first example chosen,
    then those of the second; a job trains `stack` neighbours of one kind.
    """

    options: Options
    stack: int

    def jobs(self, n_examples: int) -> dict[int, list[int]]:
        """Job → numbers of its networks."""
        whole = self.options.whole
        found = [self._cut(0, whole.n_whole), self._cut(whole.n_whole, n_examples * whole.n_repeats)]
        return dict(enumerate(part for parts in found for part in parts))

    def _cut(self, first: int, n: int) -> list[list[int]]:
        return [list(range(i, min(i + self.stack, first + n))) for i in range(first, first + n, self.stack)]

    def prepare(self, device):
        """Load the examples once for all jobs."""
        import torch

        from engram.memorization import study_data as pools
        from engram.memorization import training
        from engram.memorization.outputs import outputs
        from engram.memorization.store import Store
        from engram.utils import checkpoint

        options, n_whole = self.options, self.options.whole.n_whole
        pool, store = pools.load(options, device), Store(options.whole.weights_dir)
        order = example_order(len(pool))
        jobs = self.jobs(len(pool))

        def work(job: int, report) -> None:
            numbers = jobs[job]
            left_out = [int(order[(i - n_whole) // options.whole.n_repeats]) for i in numbers if i >= n_whole]
            rows = [torch.arange(len(pool))] * len(numbers)
            if left_out:
                rows = [torch.cat((row[:i], row[i + 1 :])) for row, i in zip(rows, left_out, strict=True)]
            learner = training.Training(options, pool, training.Cohort(numbers, torch.stack(rows)))
            path = store.checkpoint(job)
            minutes = options.machine.checkpoint_every
            training.complete(learner, path, minutes, lambda share: report(share * len(numbers)))
            loss, correct = outputs(learner.stack, pool.images, pool.labels, pool.augment)
            if left_out:
                places = torch.tensor(left_out).view(-1, 1)
                loss, correct = loss.gather(1, places), correct.gather(1, places)
            for k, number in enumerate(numbers):
                kind = LEFT_OUT if left_out else WHOLE
                checkpoint.write(
                    {"loss": loss[k].clone(), "correct": correct[k].clone()}, store.result(kind, number)
                )
            path.unlink(missing_ok=True)

        return work


def example_order(n: int):
    """The order in which examples are left out, (n,) rows of the pool."""
    import numpy as np

    return np.random.RandomState(CHOICE_SEED).permutation(n)


def run(argv: list[str]) -> None:
    """Train what is missing, then estimate and write."""
    options = cli.parse("train_whole", __doc__.split("\n")[0], GROUPS, argv)
    cli.require(options.whole, "weights_dir", "out_filename")
    import torch

    from engram.memorization import study_data as pools
    from engram.memorization import training, worker_pool
    from engram.memorization.store import Store
    from engram.utils.device import choose

    store, machine = Store(options.whole.weights_dir), options.machine
    pool = pools.load(options, choose(machine.device))
    n_examples = min(options.whole.n_examples or len(pool), len(pool))
    where = worker_pool.places(machine, options.network.model_name)
    known = store.settings()
    if not known:
        at_most = max(1, n_examples * options.whole.n_repeats // len(where))
        stack = training.stack_size(options, pool, len(pool), at_most)
        known = store.claim(options, "n_examples", "out_filename", stack=stack)
    plan = LeaveOneOut(options, known["stack"])
    jobs, n_whole = plan.jobs(n_examples), options.whole.n_whole

    def done(number: int) -> bool:
        return store.result(LEFT_OUT if number >= n_whole else WHOLE, number).exists()

    todo = [job for job, numbers in jobs.items() if not all(map(done, numbers))]
    total = n_whole + n_examples * options.whole.n_repeats
    left = sum(len(jobs[job]) for job in todo)
    worker_pool.run(plan, todo, where, worker_pool.Bar("train_whole", total, total - left))
    torch.set_num_threads(1)
    write(options, pool, store, n_examples, {**known, "n_whole": n_whole})


def write(options: Options, pool, store, n_examples: int, settings: dict) -> None:
    """Scores and standard errors of the examples left out."""
    import numpy as np

    from engram.utils import checkpoint, scores

    whole = options.whole
    rows = example_order(len(pool))[:n_examples]
    results = [checkpoint.read(store.result(WHOLE, i)) for i in range(whole.n_whole)]
    numbers = range(whole.n_whole, whole.n_whole + n_examples * whole.n_repeats)
    left_out = [checkpoint.read(store.result(LEFT_OUT, i)) for i in numbers]
    arrays = {}
    for suffix, name in (("", "loss"), ("_01", "correct")):
        inside = np.stack([np.asarray(r[name].double())[rows] for r in results])
        outside = np.stack([np.asarray(r[name].double()) for r in left_out]).reshape(n_examples, -1).T
        if name == "loss":
            inside, outside = np.exp(-inside), np.exp(-outside)
        variance = inside.var(0, ddof=1) / len(inside) + outside.var(0, ddof=1) / len(outside)
        arrays |= {
            f"scores{suffix}": inside.mean(0) - outside.mean(0), f"stderr{suffix}": np.sqrt(variance),
            f"mean_in{suffix}": inside.mean(0), f"mean_out{suffix}": outside.mean(0),
        }  # fmt: skip
    path = scores.write(
        whole.out_filename, settings, dataset=pool.name, order_hash=pool.order_hash, n_train=pool.n_source,
        index=pool.index[rows], labels=pool.labels.cpu().numpy()[rows], **arrays,
    )  # fmt: skip
    print(
        f"{n_examples} examples left out: mean memorization {arrays['scores'].mean():.4f}, "
        f"mean standard error {arrays['stderr'].mean():.4f}\nscores: {path}"
    )


if __name__ == "__main__":
    sys.exit(cli.main(run))
