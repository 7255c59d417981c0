"""Scenarios: which classes and samples belong to which task, as pure functions from arrays to arrays.

No images, no devices, no global state: `streams.py` makes benchmarks of what these functions return.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engram.utils import seeding
from engram.utils.errors import UserError


def class_order(n_classes: int, seed: int, permute: bool, chosen: tuple[int, ...] = ()) -> NDArray[np.int64]:
    """Original class at each position of the stream, shape (n_classes,).

    Permuted exactly as in the memorization paper's code and mammoth, where class c becomes label
    `RandomState(seed).permutation(n_classes)[c]`, so that a run with the same seed sees the same tasks as
    the published logs. chosen: an order of the user's.
    """
    if not chosen:
        label = np.random.RandomState(seed).permutation(n_classes) if permute else np.arange(n_classes)
        return np.argsort(label)
    if sorted(chosen) != list(range(n_classes)):
        given = ",".join(map(str, chosen))
        raise UserError(
            f"--class_order {given}: name each of the {n_classes} classes, 0 to {n_classes - 1}, once"
        )
    return np.array(chosen)


def refuse_order(order: tuple[int, ...], name: str, reason: str) -> None:
    """Raise `UserError` if the user gave a class order (--class_order) to a benchmark that has none."""
    if order:
        raise UserError(f"--class_order: not for {name}, {reason}; leave the flag out")


def relabel(y: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels as positions in the class order, (N,): task t then owns consecutive labels."""
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    return position[y]


def split_classes(n_classes: int, n_tasks: int, half_first: bool = False) -> list[tuple[int, ...]]:
    """Consecutive labels of each task; where the division leaves a rest, the first tasks take one more.

    half_first: the first task has half of the classes (rounded down), the others share the rest.
    """
    first = n_classes // 2 if half_first else 0
    limit = n_classes - first + half_first
    if not 1 + half_first <= n_tasks <= limit:
        raise UserError(
            f"--n_tasks {n_tasks}: {n_classes} classes can be split into {1 + half_first} to {limit} tasks"
            + (" with --half_classes_in_first_task" if half_first else "")
        )
    split = [np.arange(first), *np.array_split(np.arange(first, n_classes), n_tasks - half_first)]
    return [tuple(int(c) for c in classes) for classes in split if len(classes)]


def group_order(groups: list[str], seed: int, permute: bool) -> NDArray[np.int64]:
    """Class order that keeps groups of classes (alphabets) together, shape (n_classes,).

    groups: the group of each class. Groups stand in the order of their first class, or permuted by the
    seed as classes are; the classes of a group stay in their own order.
    """
    names = list(dict.fromkeys(groups))
    rank = np.argsort(class_order(len(names), seed, permute))  # of each group in the new order
    return np.argsort([rank[names.index(group)] for group in groups], kind="stable")


def split_groups(groups: list[str], n_tasks: int) -> list[tuple[int, ...]]:
    """Labels of each task when task t is the t-th group, whatever its size; later groups are left out.

    groups: the group of each label, the labels of one group next to each other.
    """
    names = list(dict.fromkeys(groups))
    if not 1 <= n_tasks <= len(names):
        raise UserError(f"--n_tasks {n_tasks}: there are {len(names)} groups of classes, one for each task")
    return [tuple(c for c, group in enumerate(groups) if group == name) for name in names[:n_tasks]]


def subset(positions: NDArray[np.int64], count: int, seed: int, task: int) -> NDArray[np.int64]:
    """At most `count` of the positions, ascending, drawn by seed and task alone; 0 takes all."""
    if not 0 < count < len(positions):
        return positions
    drawn = torch.randperm(len(positions), generator=seeding.generator(seed, "samples", task))[:count]
    chosen: NDArray[np.int64] = positions[drawn.sort().values.numpy()]
    return chosen


def labelled(
    positions: NDArray[np.int64], y: NDArray[np.int64], share: float, seed: int, task: int
) -> NDArray[np.int64]:
    """The positions (N,) that have a label where a share of each class has: at least one, in their order.

    y: the labels of all positions of the source. Drawn by seed and task alone.
    """
    draws = torch.randperm(len(positions), generator=seeding.generator(seed, "labels", task)).numpy()
    keep = np.zeros(len(positions), dtype=bool)
    for label in np.unique(y[positions]):
        of_class = draws[y[positions[draws]] == label]
        keep[of_class[: max(1, round(share * len(of_class)))]] = True
    chosen: NDArray[np.int64] = positions[keep]
    return chosen


def noisy_labels(
    positions: NDArray[np.int64],
    y: NDArray[np.int64],
    others: Mapping[int, Sequence[int]],
    rate: float,
    seed: int,
) -> NDArray[np.int64]:
    """Labels y (n,) of which a share of each class among `positions` is replaced: symmetric noise.

    others: class → the classes that its wrong labels are drawn from, each as often. As in mammoth a class
    has exactly round(rate · its samples) of them.
    """
    noisy = y.copy()
    generator = seeding.generator(seed, "label noise")
    for label, classes in others.items():
        of_class = positions[y[positions] == label]
        n_wrong = round(rate * len(of_class))
        chosen = of_class[torch.randperm(len(of_class), generator=generator)[:n_wrong].numpy()]
        drawn = torch.randint(len(classes), (n_wrong,), generator=generator).numpy()
        noisy[chosen] = np.asarray(classes)[drawn]
    return noisy


def positions_of(y: NDArray[np.int64], classes: tuple[int, ...]) -> NDArray[np.int64]:
    """Positions in `y` whose label is one of `classes`, ascending."""
    return np.flatnonzero(np.isin(y, classes))


def hold_out(y: NDArray[np.int64], percent: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions (for training, held out) of a split that takes `percent` % of every class, each ascending.

    Both parts hold at least one sample of every class: where a share rounds to none, one is drawn. Raises
    `ValueError` for a class of one sample and for a share of less than one sample per class.
    """
    from sklearn.model_selection import train_test_split  # seconds, which few runs need

    training, held_out = train_test_split(
        np.arange(len(y)), test_size=percent / 100, stratify=y, random_state=seed, shuffle=True
    )
    held_out = np.concatenate([held_out, _one_of_missing(y, training, held_out, seed)])
    training = np.setdiff1d(training, held_out)
    training = np.concatenate([training, _one_of_missing(y, held_out, training, seed)])
    return np.sort(training), np.setdiff1d(held_out, training)


def _one_of_missing(
    y: NDArray[np.int64], these: NDArray[np.int64], those: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """One position of `these`, drawn, for every class that has none among `those`."""
    rng = np.random.default_rng(seed)
    missing = np.setdiff1d(y, y[those])
    return np.array([rng.choice(these[y[these] == label]) for label in missing], dtype=np.int64)
