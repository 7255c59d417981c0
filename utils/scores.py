"""Scores: per-sample memorization scores in a file, keyed by position in the training set.

A file is a plain .npy vector with a number for every training sample, or a .npz holding at least `scores`
(n,), and as written here also `stderr` (n,), `index` (n,) positions in the training set that were
measured, `n_train`, `dataset`, `order_hash`, `settings` (JSON) and whatever else the program that wrote it
stores. Never pickled. The bytes of a .npz are compared with their checksums; a .npy has none, so that damage
is noticed only where a number leaves its range. A score is a difference of two probabilities: a number in
[-1, 1], or NaN where it was not measured (the sample was in all networks' training sets, or in none).

A vector of a range of classes, as the memorization paper publishes them, has a number for every sample of
these classes, in order; one of a data fraction for every sample of them that scikit-learn's
`train_test_split(test_size=fraction, random_state=42, stratify=labels)` draws, in that order.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.utils import files
from engram.utils.errors import UserError, numpy_reason

FRACTION_SEED = 42  # of the memorization paper's code
ROUNDING = 1e-6  # by which a score may lie outside [-1, 1]


def order_hash(labels: Tensor) -> str:
    """Identifies a data set and the order of its samples: a hash of the original labels, in order."""
    return hashlib.blake2b(labels.cpu().numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()


def write(path: str | Path, settings: dict[str, Any], **arrays: Any) -> Path:
    """Save arrays and settings as .npz, whole or not at all; with a name ending in .npy `scores` alone."""
    file = Path(path).expanduser()
    if file.suffix not in (".npz", ".npy"):
        raise UserError(f"{path}: the name of a score file ends in .npz, or .npy for the bare vector")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(file) as temporary, open(temporary, "wb") as target:
            if file.suffix == ".npy":
                np.save(target, arrays["scores"])
            else:
                np.savez_compressed(target, settings=json.dumps(settings), **arrays)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None
    return file


def load(path: str | Path, *needed: str) -> dict[str, NDArray[Any]]:
    """All arrays of a .npz (settings as a JSON string) or the vector of a .npy as `scores`.

    Refused: a file without the arrays that are needed; where `scores` are, those that cannot be scores.
    """
    file = Path(path).expanduser()
    try:
        if reason := files.damage_in_zip(file):
            raise ValueError(reason)
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            content = {"scores": content}
        else:
            with content:
                content = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # parsing damaged bytes can raise anything
        raise UserError(
            f"{path}: cannot be read ({numpy_reason(error)}); expected .npz with 'scores', or .npy"
        ) from None
    for name in needed:
        if name not in content:
            raise UserError(f"{path}: holds no array called '{name}'; it has {', '.join(content)}")
    if "scores" in needed:
        _refuse_wrong_values(path, content["scores"])
    return content


def _refuse_wrong_values(path: str | Path, scores: NDArray[Any]) -> None:
    wanted = "memorization scores are numbers in [-1, 1], with decimals, NaN where not measured"
    if not np.issubdtype(scores.dtype, np.floating):
        what = f"of type {scores.dtype}"
    elif scores.size and np.isnan(scores).all():
        what = "all NaN"
    elif n_wrong := int(np.isinf(scores).sum()):
        what = f"infinite in {n_wrong:,} of {scores.size:,} places"
    elif n_wrong := int((np.abs(scores) > 1 + ROUNDING).sum()):
        low, high = np.nanmin(scores), np.nanmax(scores)
        what = f"between {low:.4g} and {high:.4g}, {n_wrong:,} of {scores.size:,} outside"
    else:
        return
    raise UserError(f"{path}: the values are {what}; {wanted}: give a file of those, not of labels or ranks")


def read(path: str, labels: Tensor, fraction: float = 1.0, classes: str | None = None) -> Tensor:
    """(N,) float64 scores of a training set with the original `labels` (N,), NaN where none was measured.

    classes: `a,b`, the classes a to b−1 that a bare vector is about; fraction: share of their samples.
    Refused: a vector of another length, and a file made from another data set or sample order.
    """
    flag = f"--memorization_scores {path}"
    try:
        content = load(path, "scores")
    except UserError as error:
        raise UserError(f"--memorization_scores {error}") from None
    scores, n_train = content["scores"], len(labels)
    if "order_hash" in content and str(content["order_hash"]) != order_hash(labels):
        raise UserError(f"{flag}: the scores belong to another data set or sample order")
    positions = content.get("index")
    if positions is None:
        of_class = labels.cpu().numpy()
        bounds = parse_range(classes, int(of_class.max()) + 1, "--memorization_classes")
        positions = drawn_part(of_class, bounds, fraction, f"--memorization_fraction {fraction:g}")
        if scores.shape != positions.shape:
            n_of_classes = len(in_class_range(of_class, *bounds))
            raise UserError(f"{flag}: {_wrong_length(scores, positions, n_train, n_of_classes)}")
    elif fraction != 1 or classes is not None:
        given = "--memorization_fraction" if fraction != 1 else "--memorization_classes"
        raise UserError(f"{flag}: names its samples itself ('index'); leave {given} out")
    if scores.shape != positions.shape or positions.ndim != 1 or not within(positions, n_train):
        raise UserError(f"{flag}: its 'index' {positions.shape} does not fit {n_train} training samples")
    refuse_other_classes(content, labels.cpu().numpy()[positions], flag)
    whole = torch.full((n_train,), torch.nan, dtype=torch.float64)
    whole[torch.from_numpy(positions.astype(np.int64))] = torch.from_numpy(scores.astype(np.float64))
    return whole


def refuse_other_classes(content: Mapping[str, NDArray[Any]], labels: NDArray[Any], flag: str) -> None:
    """Raise `UserError` where a file's own `labels` are not those (n,) of the examples it is taken to be of.

    A range of classes has the length of another, so that the length of a vector does not tell.
    """
    own = content.get("labels")
    if own is None or not np.issubdtype(own.dtype, np.integer):
        return
    n_wrong = len(labels) if own.shape != labels.shape else int((own != labels).sum())
    if n_wrong:
        raise UserError(
            f"{flag}: {n_wrong:,} of {len(labels):,} examples have another class than the file's 'labels' "
            "say: it is of other examples; check the data set, the range of classes and the share you name"
        )


def refuse_other_order(contents: Iterable[Mapping[str, NDArray[Any]]], flag: str) -> None:
    """Raise `UserError` where files that say which data set and order they are of do not say the same."""
    if len({str(content["order_hash"]) for content in contents if "order_hash" in content}) > 1:
        raise UserError(f"{flag}: belongs to another data set or sample order")


def _wrong_length(scores: NDArray[Any], positions: NDArray[Any], n_train: int, n_of_classes: int) -> str:
    text = f"has shape {scores.shape}, the training set needs ({n_train},)"
    if len(positions) < n_train:
        text = f"has shape {scores.shape}, that part of {n_train} training samples needs {positions.shape}"
    text += ": the scores belong to another data set or a part of it"
    if scores.ndim == 1 and 0 < len(scores) < n_of_classes:
        share = share_of(len(scores), n_of_classes)
        text += f", whose share is named by --memorization_fraction (here {share})"
        text += " and whose classes by --memorization_classes a,b"
    return text


def share_of(length: int, n: int) -> str:
    """The shortest decimal share of which `length` of n samples are drawn: scikit-learn takes ⌈n · share⌉."""
    for power in (10**digits for digits in range(1, 16)):
        share = (length * power // n) / power
        if math.ceil(n * share) == length:
            return repr(share)
    return repr(length / n)


def parse_range(text: str | None, n_classes: int, flag: str = "--class_range") -> tuple[int, int]:
    """`a,b` as (a, b), 0 <= a < b <= n_classes; all classes for None. flag: by which it was given."""
    if text is None:
        return 0, n_classes
    try:
        first, last = (int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"{flag} {text}: expected two whole numbers, e.g. 0,10") from None
    if not 0 <= first < last <= n_classes:
        raise UserError(f"{flag} {text}: must satisfy 0 <= a < b <= {n_classes}, the classes there are")
    return first, last


def in_class_range(labels: NDArray[np.int64], first: int, last: int) -> NDArray[np.int64]:
    """Positions of the labels in [first, last), ascending."""
    return np.flatnonzero((labels >= first) & (labels < last))


def drawn_part(
    labels: NDArray[np.int64], classes: tuple[int, int], fraction: float, flag: str
) -> NDArray[np.int64]:
    """Positions of a share of the samples of a range of classes, as the paper's code draws it."""
    positions = in_class_range(labels, *classes)
    return positions[drawn_fraction(labels[positions], fraction, flag)]


def drawn_fraction(labels: NDArray[np.int64], fraction: float, flag: str) -> NDArray[np.int64]:
    """Positions of a stratified share of the samples, in the drawn (shuffled) order; all, ascending, for 1.

    flag: what the user gave, for the error where the labels cannot be divided so.
    """
    if fraction == 1:
        return np.arange(len(labels))
    from sklearn.model_selection import train_test_split  # takes seconds, which few runs need

    try:
        drawn: NDArray[np.int64] = train_test_split(
            np.arange(len(labels)), test_size=fraction, random_state=FRACTION_SEED, stratify=labels
        )[1]
        return drawn
    except ValueError as error:
        raise UserError(f"{flag}: {len(labels)} examples cannot be split so: {error}") from error


def within(positions: NDArray[Any], n: int) -> bool:
    """Whether these are positions, at least one, of a data set of n examples."""
    whole = np.issubdtype(positions.dtype, np.integer)
    return bool(whole and len(positions) and positions.min() >= 0 and positions.max() < n)
