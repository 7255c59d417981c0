"""In-stream memorization: which examples networks memorize while they follow a stream, and how it decays.

    python -m memorization.train_stream --dataset_name digits --n_tasks 5 --buffer_size 100 --n_repeats 64 \
        --weights_dir runs/mem/stream --out_filename runs/mem/stream.npz

R networks follow the stream of tasks; of every task each leaves out its own random half. After task t the
memorization of an example of task s <= t is the mean probability of its label, among the classes met so far,
in networks that saw it minus that in networks that did not. The file holds `in_stream` (T, n) with
`in_stream_stderr`, `mean_in`, `mean_out` (NaN before an example's task), the same among the classes of the
example's own task (`task_il...`), `task` (n,), and as `scores` the memorization right after the own task.
Offline scores are the limit of one task. Interrupted, the same command goes on.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.cli import MACHINE, STUDY, Options
from engram.memorization.train_splits import stack_size
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class StreamOptions(OptionSet):
    """The stream, its replay and the networks that follow it."""

    weights_dir: str | None = option(None, "folder of what each network said (required)")
    out_filename: str | None = option(None, "file to write, .npz (required)")
    n_repeats: int = option(64, "networks that follow the stream", ge=4)
    subset_ratio: float = option(0.5, "share of every task that a network sees", gt=0, lt=1)
    n_tasks: int = option(5, "tasks, consecutive classes", ge=1)
    permute_classes: bool = option(False, "class order permuted by --seed, as main.py does")
    buffer_size: int = option(0, "examples of its own past that a network replays from; 0: no replay", ge=0)
    minibatch_size: int = option(0, "examples replayed per step; 0 takes --batch_size", ge=0)
    store_probs: bool = option(False, "also keep every network's loss (T, R, n) and membership (R, n)")


GROUPS = {"stream": StreamOptions, **STUDY, **MACHINE}
RESULTS = "stream"


@dataclass(frozen=True)
class Stream:
    """The plan: job j lets the repeats from j · stack on follow the stream, as one."""

    options: Options
    stack: int

    def repeats(self, job: int) -> list[int]:
        """The networks of a job."""
        first = job * self.stack
        return list(range(first, min(first + self.stack, self.options.stream.n_repeats)))

    def prepare(self, device):
        """Load the examples once for all jobs."""
        from engram.memorization import study_data as pools
        from engram.memorization import subsets, training
        from engram.memorization.store import Store
        from engram.memorization.stream import StreamTraining, halves
        from engram.utils import checkpoint

        options = self.options
        pool, store = pools.load(options, device), Store(options.stream.weights_dir)
        classes = tasks(options, len(pool.class_names))

        def split(labels, seed):
            return subsets.half(labels, seed, options.stream.subset_ratio)

        def work(job: int, report) -> None:
            repeats = self.repeats(job)
            learner = StreamTraining(options, pool, repeats, halves(pool, repeats, classes, split), classes)
            path, minutes = store.checkpoint(job), options.machine.checkpoint_every
            training.complete(learner, path, minutes, lambda share: report(share * len(repeats)))
            for k, repeat in enumerate(repeats):
                said = {name: values[:, k].clone() for name, values in learner.outputs.items()}
                checkpoint.write(said, store.result(RESULTS, repeat))
            path.unlink(missing_ok=True)

        return work


def tasks(options: Options, n_classes: int) -> list[tuple[int, ...]]:
    """The classes of each task, by their original labels."""
    from engram.datasets import scenarios

    first, last = 0, n_classes
    if options.data.class_range:
        from engram.memorization.subsets import parse_range

        first, last = parse_range(options.data.class_range, n_classes)
    stream = options.stream
    order = first + scenarios.class_order(last - first, options.recipe.seed, stream.permute_classes)
    return [
        tuple(int(order[c]) for c in own) for own in scenarios.split_classes(last - first, stream.n_tasks)
    ]


def run(argv: list[str]) -> None:
    """Train what is missing, then estimate and write."""
    options = cli.parse("train_stream", __doc__.split("\n")[0], GROUPS, argv)
    cli.require(options.stream, "weights_dir", "out_filename")
    from engram.memorization import worker_pool
    from engram.memorization.store import Store

    store, n = Store(options.stream.weights_dir), options.stream.n_repeats
    where = worker_pool.places(options.machine, options.network.model_name)
    known = store.settings()
    if not known:
        share = options.stream.subset_ratio / options.stream.n_tasks
        stack = stack_size(options, len(where), n, share)
        known = store.claim(options, "n_repeats", "out_filename", "store_probs", stack=stack)
    plan = Stream(options, known["stack"])
    missing = [repeat for repeat in range(n) if not store.result(RESULTS, repeat).exists()]
    jobs = sorted({repeat // plan.stack for repeat in missing})
    worker_pool.run(plan, jobs, where, worker_pool.Bar("train_stream", n, n - len(missing)))
    write(options, store, {**known, "n_networks": n})


def write(options: Options, store, settings: dict) -> None:
    """Estimates at every time."""
    import numpy as np
    import torch

    from engram.memorization import study_data as pools
    from engram.memorization import subsets
    from engram.memorization.eval_splits import identity
    from engram.memorization.stream import halves, task_of
    from engram.utils import checkpoint, scores

    repeats = list(range(options.stream.n_repeats))
    pool = pools.load(options, torch.device("cpu"))
    classes = tasks(options, len(pool.class_names))
    member = np.zeros((len(repeats), len(pool)), dtype=bool)
    for rows in halves(pool, repeats, classes, lambda y, s: subsets.half(y, s, options.stream.subset_ratio)):
        np.put_along_axis(member, rows.numpy(), True, axis=1)
    said = [checkpoint.read(store.result(RESULTS, repeat)) for repeat in repeats]
    outputs = {name: np.stack([np.asarray(s[name]) for s in said], axis=1) for name in said[0]}
    task = task_of(pool.labels, classes).numpy()
    arrays = over_time(outputs, member)
    now = np.arange(len(pool))
    arrays |= {"scores": arrays["in_stream"][task, now], "stderr": arrays["in_stream_stderr"][task, now]}
    if not np.isfinite(arrays["stderr"]).all():
        raise UserError("some examples were in (nearly) all subsets or in none; let more networks follow")
    if options.stream.store_probs:
        arrays |= {"loss_over_time": outputs["loss"], "member": member}
    path = scores.write(options.stream.out_filename, settings, task=task, **arrays, **identity(pool))
    print(summary(arrays, task))
    print(f"scores: {path}")


def over_time(outputs: dict, member) -> dict:
    """Estimates after each task, (T, n), from outputs (T, R, n)."""
    import numpy as np

    from engram.memorization.estimator import memorization

    arrays: dict = {}
    views = {
        "": np.exp(-outputs["loss"].astype(np.float64)),
        "task_il_": np.exp(-outputs["task_loss"].astype(float)),
    }
    views["hit_"] = outputs["correct"].astype(np.float64)
    for prefix, values in views.items():
        found = [memorization(at, member) for at in values]
        names = {
            "in_stream": "scores",
            "in_stream_stderr": "stderr",
            "mean_in": "mean_in",
            "mean_out": "mean_out",
        }
        arrays |= {
            prefix + name: np.stack([getattr(f, field) for f in found]) for name, field in names.items()
        }
    return arrays


def summary(arrays: dict, task) -> str:
    """Mean memorization of each task's examples after it and after each later task, in %."""
    n_tasks = len(arrays["in_stream"])
    lines = ["mean memorization in %, row: task just learned, column: task of the examples"]
    for t in range(n_tasks):
        own = [f"{100 * arrays['in_stream'][t, task == s].mean():7.1f}" for s in range(t + 1)]
        lines.append(f"{t:>4}" + "".join(own))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(cli.main(run))
