"""Scores from networks trained on random halves: the work of eval_splits."""

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram.memorization import study_data, subsets, training
from engram.memorization.agreement import MEASURES
from engram.memorization.estimator import influence, memorization, split_half_reliability
from engram.memorization.eval_splits import EvalConfig
from engram.memorization.outputs import outputs
from engram.memorization.settings import MIN_NETWORKS
from engram.memorization.stacked_networks import stack_networks
from engram.memorization.store import NetworkStore
from engram.memorization.study_data import StudyData
from engram.memorization.worker_pool import NetworkProgress
from engram.utils import device, scores
from engram.utils.errors import UserError

FITTED = 0.95  # accuracy on their own examples from which on networks count as having memorized them
RELIABLE = 0.7  # split-half reliability, of either correlation, below which a warning says so
PAIRS_AT_ONCE = 2_000_000  # influences held in memory at a time, for each of a few arrays
Arrays = dict[str, NDArray[Any]]


class NetworkOutputs(NamedTuple):
    """What R networks give for n training examples and, where influences are wanted, m test examples."""

    loss: NDArray[np.float32]  # (R, n)
    correct: NDArray[np.bool_]  # (R, n)
    test_loss: NDArray[np.float32] | None  # (R, m)


def write(config: EvalConfig) -> None:
    """Evaluate the networks in --weights_dir, write the score file and print what it says on the whole."""
    store = NetworkStore(config.splits.weights_dir)
    settings = store.settings()
    repeats = repeats_to_evaluate(store, config.splits.n_repeats)
    chosen_device = device.choose(config.machine.device)
    device.set_threads(config.machine.num_threads, config.network.backbone)
    data = study_data.load(config.data, chosen_device, config.pixels)
    arrays = estimates(config, data, store, repeats, settings["stack"])
    settings |= {"n_networks": len(repeats)}
    path = scores.write(config.evaluation.out_filename, settings, **data.identity(), **arrays)
    print(summary(arrays, len(repeats), config.data.dataset))
    print(f"scores: {path}")


def repeats_to_evaluate(store: NetworkStore, n_repeats: int) -> list[int]:
    """Those of the first `n_repeats` networks that have been trained, of all for 0."""
    repeats = [repeat for repeat in store.present() if not n_repeats or repeat < n_repeats]
    if len(repeats) < MIN_NETWORKS:
        raise UserError(
            f"--weights_dir {store.folder}: {len(repeats)} trained networks there"
            f"{f' among the first {n_repeats}' if n_repeats else ''}, scores need at least {MIN_NETWORKS}, "
            "better 100; train them by python -m memorization.train_splits --n_repeats 100"
        )
    if len(repeats) < n_repeats:
        print(f"of {n_repeats} networks {len(repeats)} have been trained; using those", file=sys.stderr)
    return repeats


def estimates(
    config: EvalConfig, data: StudyData, store: NetworkStore, repeats: list[int], stack_size: int
) -> Arrays:
    """The arrays of the score file."""
    labels, wanted = data.labels.cpu().numpy(), config.evaluation
    member = subsets.memberships(labels, max(repeats) + 1, config.splits.subset_ratio)[repeats]
    loss, correct, test_loss = evaluate(config, data, store, repeats, stack_size)
    probability = np.exp(-loss.astype(np.float64))
    soft, hard = (memorization(values, member).measured() for values in (probability, correct))
    if np.isnan(soft.scores).all():
        raise UserError(
            f"no example was in two subsets and in two not, of {len(repeats)}; train more networks"
        )
    arrays: Arrays = {
        "scores": soft.scores, "stderr": soft.stderr, "ci95": soft.ci95,
        "mean_in": soft.mean_in, "mean_out": soft.mean_out,
        "scores_01": hard.scores, "stderr_01": hard.stderr, "accuracy_in": hard.mean_in,
        "accuracy_out": hard.mean_out, "n_in": soft.n_in, "n_out": soft.n_out, "repeats": np.array(repeats),
    }  # fmt: skip
    for name, measure in (("reliability", "pearson"), ("reliability_spearman", "spearman")):
        rng = np.random.default_rng(0)  # the same halves for both
        arrays[name] = np.array(split_half_reliability(probability, member, MEASURES[measure], rng))
    if wanted.store_probs:
        arrays |= {"loss": loss, "correct": correct, "member": member}
    if test_loss is not None:
        strongest = strongest_influences(np.exp(-test_loss.astype(np.float64)), member, wanted.influence)
        arrays |= strongest | {"influence_from": data.index[strongest["influence_from"]]}
    return arrays


def evaluate(
    config: EvalConfig, data: StudyData, store: NetworkStore, repeats: list[int], stack_size: int
) -> NetworkOutputs:
    """Outputs of the networks on clean images, `stack_size` networks at a time."""
    losses, hits, test_losses = [], [], []
    with NetworkProgress("eval_splits", len(repeats)) as progress:
        for start in range(0, len(repeats), stack_size):
            group = repeats[start : start + stack_size]
            networks = [training.build_network(config, data, repeat) for repeat in group]
            for network, repeat in zip(networks, group, strict=True):
                network.load_state_dict(store.load(repeat))
            stacked = stack_networks(networks)
            loss, correct = outputs(stacked, data.images, data.labels, data.augment)
            losses.append(loss.numpy())
            hits.append(correct.numpy())
            if config.evaluation.influence:
                test_loss, _ = outputs(stacked, data.test_images, data.test_labels, data.augment)
                test_losses.append(test_loss.numpy())
            progress.advance(len(group))
    test = np.concatenate(test_losses) if test_losses else None
    return NetworkOutputs(np.concatenate(losses), np.concatenate(hits), test)


def strongest_influences(values: NDArray[np.float64], member: NDArray[np.bool_], k: int) -> Arrays:
    """For each test example the k largest influences: values, standard errors, training rows, (m, k)."""
    k = min(k, member.shape[1])
    pieces = []
    for columns in np.array_split(values, 1 + values.shape[1] * member.shape[1] // PAIRS_AT_ONCE, axis=1):
        estimate = influence(columns, member).measured()
        best = np.argsort(-estimate.scores, axis=0, kind="stable")[:k]
        picked = [np.take_along_axis(field, best, axis=0).T for field in (estimate.scores, estimate.stderr)]
        pieces.append((*picked, best.T))
    names = ("influence", "influence_stderr", "influence_from")
    return {n: np.concatenate(column) for n, column in zip(names, zip(*pieces, strict=True), strict=True)}


def summary(arrays: Arrays, n_networks: int, dataset: str) -> str:
    """What the scores say on the whole, how reliable they are, and warnings where they say little."""
    values = arrays["scores"][np.isfinite(arrays["scores"])]
    shares = ", ".join(f"{100 * (values > t).mean():.1f} % > {t}" for t in (0.1, 0.25, 0.5))
    accuracy_in, accuracy_out = (np.nanmean(arrays[f"accuracy_{side}"]) for side in ("in", "out"))
    pearson, spearman = (float(arrays[name]) for name in ("reliability", "reliability_spearman"))
    lines = [
        f"{len(arrays['scores']):,} examples of {dataset}, {n_networks} networks: accuracy with "
        f"{accuracy_in:.4f}, without {accuracy_out:.4f}",
        f"memorization: mean {values.mean():.4f}, {shares}; median standard error "
        f"{np.nanmedian(arrays['stderr']):.4f}, median 95 % interval ± {np.nanmedian(arrays['ci95']):.4f}",
        f"split-half reliability, by which two such studies would correlate: Pearson {pearson:.3f} (values), "
        f"Spearman {spearman:.3f} (ranks, by which policies choose)",
    ]
    if n_unmeasured := len(arrays["scores"]) - len(values):
        lines.append(f"{n_unmeasured} examples were in (nearly) all subsets or in none: NaN, not measured")
    return "\n".join([*lines, *warnings(accuracy_in, pearson, spearman, n_networks)])


def warnings(accuracy_in: float, pearson: float, spearman: float, n_networks: int) -> list[str]:
    """Lines that say what to change where networks do not fit their examples or the scores are noise.

    pearson, spearman: the split-half reliability of the scores' values and of their ranks.
    """
    lines = []
    if accuracy_in < FITTED:
        lines.append(
            f"WARNING: the networks predict only {100 * accuracy_in:.0f} % of their own training examples: "
            "they memorize little, and the scores say little. Train longer (--n_epochs), wider "
            "(--model_width), or without crops and mirror images (--augment none)"
        )
    if np.isnan(pearson):
        lines.append(
            f"WARNING: {n_networks} networks are too few to tell the scores from noise (--n_repeats)"
        )
    elif pearson < RELIABLE:
        lines.append(
            f"WARNING: {100 * (1 - max(pearson, 0)):.0f} % of the variance of the scores is noise; for a "
            f"Pearson reliability of {RELIABLE}: {remedy(pearson, n_networks)}"
        )
    elif spearman < RELIABLE:
        lines.append(
            f"WARNING: policies choose by rank, and the order of the scores is less sure than their values: "
            f"for a Spearman reliability of {RELIABLE} rather than {spearman:.3f}: "
            f"{remedy(spearman, n_networks)}"
        )
    return lines


def remedy(reliability: float, n_networks: int) -> str:
    """What brings scores of this reliability to `RELIABLE`."""
    if reliability <= 0:
        return "networks that fit their examples"
    # Spearman and Brown's formula, solved for the length
    wanted = n_networks * RELIABLE * (1 - reliability) / (reliability * (1 - RELIABLE))
    return f"networks that fit their examples, or about {int(np.ceil(wanted)):,} of these (--n_repeats)"
