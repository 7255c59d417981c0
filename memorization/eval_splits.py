"""Memorization scores with standard errors from the networks that train_splits has trained.

    python -m memorization.eval_splits --weights_dir runs/mem/mnist --out_filename runs/mem/mnist.npz

The file holds, for each example, `scores` (mean softmax probability of the label with minus without the
example in the training set), `stderr`, the same for right or wrong predictions (`scores_01`, `stderr_01`),
`mean_in`, `mean_out`, `n_in`, `n_out`, `index` (position in the training set), and `labels`. Clean images,
evaluation mode. The flags of train_splits are read from the folder.
"""

import sys
from dataclasses import dataclass
from typing import Any

from engram.memorization import cli
from engram.memorization.cli import MACHINE, STUDY, Options
from engram.memorization.train_splits import SplitOptions
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError

PAIRS_AT_ONCE = 2_000_000  # influences held in memory at a time, for each of a few arrays


@dataclass(frozen=True)
class EvalOptions(OptionSet):
    """What is written."""

    out_filename: str | None = option(None, "score file to write, .npz, or .npy for scores alone (required)")
    store_probs: bool = option(
        False, "also keep loss (−log probability), correct and member (R, n): any estimator can be recomputed"
    )
    influence: int = option(
        0, "also keep, for every test example, the so many training examples that help it most", ge=0
    )


@dataclass(frozen=True)
class TrainedOptions(SplitOptions):
    """Which networks, and where they are kept."""

    n_repeats: int | None = option(None, "use the first so many networks (default: all there are)", ge=2)


GROUPS = {"evaluation": EvalOptions, "splits": TrainedOptions, **STUDY, **MACHINE}


def run(argv: list[str]) -> None:
    """Evaluate, estimate, write."""
    options = cli.parse("eval_splits", __doc__.split("\n")[0], GROUPS, argv)
    cli.require(options.splits, "weights_dir")
    cli.require(options.evaluation, "out_filename")
    from engram.memorization import study_data as pools
    from engram.memorization.store import Store
    from engram.utils import device, scores

    store = Store(options.splits.weights_dir)
    known = store.settings()
    repeats = present(store, options.splits.n_repeats)
    where = device.choose(options.machine.device)
    device.set_threads(0, options.network.model_name)
    pool = pools.load(options, where)
    arrays = estimates(options, pool, store, repeats, known["stack"])
    settings = {**known, "n_networks": len(repeats)}
    path = scores.write(options.evaluation.out_filename, settings, **identity(pool), **arrays)
    print(summary(arrays, len(repeats)))
    print(f"scores: {path}")


def present(store, n_repeats: int | None) -> list[int]:
    """The networks to evaluate: all, or of the first `n_repeats` those that have been trained."""
    repeats = [repeat for repeat in store.present() if n_repeats is None or repeat < n_repeats]
    if len(repeats) < 4:
        raise UserError(
            f"--weights_dir {store.folder}: {len(repeats)} trained networks there; run "
            "python -m memorization.train_splits first (scores need at least 4, better 100)"
        )
    if n_repeats and len(repeats) < n_repeats:
        print(f"of {n_repeats} networks {len(repeats)} have been trained; using those", file=sys.stderr)
    return repeats


def identity(pool) -> dict[str, Any]:
    """What ties a score file to its data set."""
    return {
        "dataset": pool.name, "order_hash": pool.order_hash, "n_train": pool.n_source, "index": pool.index,
        "labels": pool.labels.cpu().numpy(),
    }  # fmt: skip


def estimates(options: Options, pool, store, repeats: list[int], stack_size: int) -> dict[str, Any]:
    """The arrays of the score file."""
    import numpy as np

    from engram.memorization import subsets
    from engram.memorization.estimator import memorization

    member = subsets.memberships(pool.labels.cpu().numpy(), max(repeats) + 1, options.splits.subset_ratio)
    member = member[repeats]
    loss, correct, test_loss = evaluate(options, pool, store, repeats, stack_size)
    soft, hard = memorization(np.exp(-loss.astype(np.float64)), member), memorization(correct, member)
    arrays = {
        "scores": soft.scores, "stderr": soft.stderr, "mean_in": soft.mean_in, "mean_out": soft.mean_out,
        "scores_01": hard.scores, "stderr_01": hard.stderr, "accuracy_in": hard.mean_in,
        "accuracy_out": hard.mean_out, "n_in": soft.n_in, "n_out": soft.n_out, "repeats": np.array(repeats),
    }  # fmt: skip
    if lacking := int((~np.isfinite(soft.stderr)).sum()):
        raise UserError(f"{lacking} examples were in (nearly) all subsets or in none; train more networks")
    if options.evaluation.store_probs:
        arrays |= {"loss": loss, "correct": correct, "member": member}
    if options.evaluation.influence:
        found = strongest(np.exp(-test_loss.astype(np.float64)), member, options.evaluation.influence)
        arrays |= {**found, "influence_from": pool.index[found["influence_from"]]}
    return arrays


def evaluate(options: Options, pool, store, repeats: list[int], stack_size: int):
    """Loss and correctness on the examples (R, N), and the loss on the test set (R, M) for influences."""
    import numpy as np

    from engram.memorization import training, worker_pool
    from engram.memorization.outputs import outputs
    from engram.memorization.stacked_networks import stack

    rows: list[tuple] = []
    with worker_pool.Bar("eval_splits", len(repeats)) as bar:
        for start in range(0, len(repeats), stack_size):
            own = repeats[start : start + stack_size]
            networks = [training.network(options, pool, repeat) for repeat in own]
            for network, repeat in zip(networks, own, strict=True):
                network.load_state_dict(store.load(repeat))
            stacked = stack(networks)
            found = outputs(stacked, pool.images, pool.labels, pool.augment)
            if options.evaluation.influence:
                tested = outputs(stacked, pool.test_images, pool.test_labels, pool.augment)
                found = (*found, tested[0])
            rows.append(found)
            bar.advance(len(own))
    parts = [np.concatenate([part.numpy() for part in column]) for column in zip(*rows, strict=True)]
    return parts if len(parts) == 3 else (*parts, None)


def strongest(values, member, k: int) -> dict[str, Any]:
    """For each test example the k largest influences: values, standard errors, training rows, (M, k)."""
    import numpy as np

    from engram.memorization.estimator import influence

    k = min(k, member.shape[1])
    parts = []
    for columns in np.array_split(values, 1 + values.shape[1] * member.shape[1] // PAIRS_AT_ONCE, axis=1):
        found = influence(columns, member)
        best = np.argsort(-found.scores, axis=0, kind="stable")[:k]
        pick = [np.take_along_axis(field, best, axis=0).T for field in (found.scores, found.stderr)]
        parts.append((*pick, best.T))
    names = ("influence", "influence_stderr", "influence_from")
    return {n: np.concatenate(column) for n, column in zip(names, zip(*parts, strict=True), strict=True)}


def summary(arrays: dict[str, Any], n_networks: int) -> str:
    """The figures that a study is known by."""
    scores = arrays["scores"]
    shares = ", ".join(f"{100 * (scores > t).mean():.1f} % > {t}" for t in (0.1, 0.25, 0.5))
    return (
        f"{len(scores)} examples, {n_networks} networks: accuracy with {arrays['accuracy_in'].mean():.4f}, "
        f"without {arrays['accuracy_out'].mean():.4f}\n"
        f"memorization: mean {scores.mean():.4f}, {shares}; mean standard error {arrays['stderr'].mean():.4f}"
    )


if __name__ == "__main__":
    sys.exit(cli.main(run))
