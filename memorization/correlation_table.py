"""Table of correlations between vectors of scores: the work of correlate."""

import csv
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engram.memorization import noise_ceilings
from engram.memorization.agreement import Correlation, by_class, correlations, strongest_first
from engram.memorization.bare_vectors import PositionFinder, names_its_data
from engram.memorization.correlate import CorrelateOptions
from engram.memorization.file_names import short_names
from engram.utils import scores
from engram.utils.errors import UserError
from engram.utils.files import replacing

MIN_COMMON = 10  # examples that two files must have in common
HEADS = (
    "proxy", "Pearson", "Spearman", "Kendall", "Spearman per class: mean (min to max)", "ms per 1,000",
    "examples",
)  # fmt: skip
Arrays = dict[str, NDArray[Any]]
Rows = NDArray[np.int64]


class Shared(NamedTuple):
    """Positions of the examples that two files have in the training set, and their rows in each file."""

    positions: Rows
    rows: Rows
    other_rows: Rows


@dataclass(frozen=True)
class Row:
    """How one vector correlates with the scores, over `n` examples."""

    name: str
    n: int
    correlations: dict[str, Correlation]
    per_class: dict[int, float]  # Spearman's, of the classes in which it is defined
    ms_per_1000: float  # cost of the proxy, NaN where it is unknown

    def cells(self) -> list[str]:
        """The row of the Markdown table."""
        values = [_cell(correlation) for correlation in self.correlations.values()]
        classes, cost = "–", "–"
        if self.per_class:
            values_of_classes = self.per_class.values()
            mean = sum(values_of_classes) / len(values_of_classes)
            classes = f"{mean:z.3f} ({min(values_of_classes):z.3f} to {max(values_of_classes):z.3f})"
        if not math.isnan(self.ms_per_1000):
            cost = f"{self.ms_per_1000:.1f}"
        return [self.name, *values, classes, cost, str(self.n)]

    def csv(self, classes: list[int]) -> dict[str, object]:
        """The row of the .csv file, with a column for each of these classes."""
        columns: dict[str, object] = {"name": self.name, "n": self.n}
        for measure, (value, low, high) in self.correlations.items():
            columns |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
        per_class = {f"spearman_class_{label}": self.per_class.get(label, math.nan) for label in classes}
        return columns | {"ms_per_1000": self.ms_per_1000} | per_class


def _cell(correlation: Correlation) -> str:
    """`0.812 [0.790, 0.834]`; no interval where nothing was resampled, a dash where nothing is defined."""
    value, low, high = correlation
    if math.isnan(value):
        return "–"
    return f"{value:z.3f}" if math.isnan(low) else f"{value:z.3f} [{low:z.3f}, {high:z.3f}]"


def write(options: CorrelateOptions) -> None:
    """Print the table, best correlation first, and the noise ceilings; write the .csv if asked."""
    rng = np.random.default_rng(options.seed)
    content = scores.load(options.scores, "scores")
    rows_of_files: list[tuple[str, Row]] = []
    others: list[noise_ceilings.Other] = []
    for path, file_name in zip(options.against, short_names(options.against), strict=True):
        other = load_other(path)
        named = next((c for c in (content, other) if names_its_data(c)), None)
        finder = PositionFinder(options, named)
        shared = common_examples(content, other, path, finder)
        compared = compare(content, other, path, file_name, shared, finder, rng)
        rows_of_files += [(file_name, row) for row in compared]
        others.append(noise_ceilings.Other(file_name, other, shared.rows, shared.other_rows))
    rows = told_apart(rows_of_files)
    rows.sort(key=lambda row: strongest_first(row.correlations["spearman"].value))
    print(markdown(rows))
    if not all(math.isnan(row.ms_per_1000) for row in rows):
        print("ms per 1,000: of the proxy itself; the training of the networks that it rates is not counted")
    print("\n".join(noise_ceilings.lines(content, others)))
    if options.out_filename:
        write_csv(rows, Path(options.out_filename).expanduser())


def told_apart(rows_of_files: list[tuple[str, Row]]) -> list[Row]:
    """The rows; those that have one name carry their file's too: `loss (a/proxies)`."""
    n_of_name = Counter(row.name for _, row in rows_of_files)
    return [
        replace(row, name=f"{row.name} ({file_name})") if n_of_name[row.name] > 1 else row
        for file_name, row in rows_of_files
    ]


def load_other(path: str) -> Arrays:
    """The content of a file of scores or proxies; `UserError` where it holds no vectors of numbers."""
    content, flag = scores.load(path), f"--against {path}"
    if not {"scores", "proxies"} & content.keys():
        raise UserError(f"{flag}: holds neither 'scores' nor 'proxies', but {', '.join(content)}")
    for name, vector in vectors(content, "scores").items():
        if vector.ndim != 1:
            raise UserError(f"{flag}: '{name}' has shape {vector.shape}; one vector is expected, (N,)")
        if not np.issubdtype(vector.dtype, np.number) and vector.dtype != bool:
            raise UserError(f"{flag}: '{name}' holds {vector.dtype} values; save it as float")
        if np.isnan(vector).all():
            raise UserError(f"{flag}: all values of '{name}' are NaN")
    return content


def vectors(content: Arrays, file_name: str) -> Arrays:
    """Name → (n,) vector of a file: all its proxies, or its scores under the file's name."""
    if "proxies" in content:
        return dict(zip(map(str, content["names"]), content["proxies"], strict=True))
    return {file_name: content["scores"]}


def compare(
    content: Arrays, other: Arrays, path: str, file_name: str, shared: Shared, finder: PositionFinder,
    rng: np.random.Generator,
) -> list[Row]:  # fmt: skip
    """A row for each vector in the file at `path`, on the examples that both files have."""
    common, rows, other_rows = shared
    labels = content["labels"][rows] if "labels" in content else None
    if labels is None and "labels" in other:
        labels = other["labels"][other_rows]
    if labels is None and finder.read_labels is not None:
        labels = finder.read_labels[common]
    costs = dict(zip(map(str, other["names"]), other["cost"], strict=True)) if "cost" in other else {}
    table = []
    for name, vector in vectors(other, file_name).items():
        a, b = content["scores"][rows], vector[other_rows]
        measured = ~(np.isnan(a) | np.isnan(b))
        a, b = a[measured], b[measured]
        require_common(len(a), path)
        results = correlations(a, b, finder.options.n_bootstrap, rng)
        per_class = by_class(a, b, labels[measured]) if labels is not None else {}
        defined = {label: value for label, value in per_class.items() if not math.isnan(value)}
        cost = 1000 * float(costs.get(name, math.nan))
        table.append(Row(name, len(a), results, defined, cost))
    return table


def common_examples(content: Arrays, other: Arrays, path: str, finder: PositionFinder) -> Shared:
    """The examples of both files; `UserError` where they are too few, or the files of other data."""
    scores.refuse_other_order((content, other), f"--against {path}")
    hashes = [str(c["order_hash"]) for c in (content, other) if "order_hash" in c]
    n, n_other = len(content["scores"]), max(len(v) for v in vectors(other, path).values())
    if n != n_other and finder.labels_are_unknown(content, other):
        raise UserError(
            f"--against {path}: {n_other:,} scores beside {n:,}, and no file says of which examples: give "
            "--dataset NAME, with --dataset_size or --class_range for a part of it"
        )
    flags = f"--scores {finder.options.scores}", f"--against {path}"
    index, other_index = finder.positions(content, n, flags[0]), finder.positions(other, n_other, flags[1])
    if finder.read_labels is not None:
        refuse_other_data(finder.read_labels, hashes, path)
        refuse_other_examples(content, index, finder.read_labels, flags[0])
        refuse_other_examples(other, other_index, finder.read_labels, flags[1])
    common, rows, other_rows = np.intersect1d(index, other_index, return_indices=True)
    require_common(len(common), path)
    if "labels" in content and "labels" in other:
        scores.refuse_other_classes(
            {"labels": other["labels"][other_rows]}, content["labels"][rows], flags[1]
        )
    return Shared(common, rows, other_rows)


def refuse_other_data(labels: NDArray[np.int64], hashes: list[str], path: str) -> None:
    """Raise `UserError` where a file was not made from the data set with these labels, which was read."""
    if hashes and scores.order_hash(torch.from_numpy(labels)) != hashes[0]:
        raise UserError(
            f"--against {path}: a file was made from another data set or sample order than the one that was "
            "read; check --dataset and --data_dir"
        )


def refuse_other_examples(
    content: Arrays, index: NDArray[np.int64], labels: NDArray[np.int64], flag: str
) -> None:
    """Raise `UserError` where a file's examples (n,) are not in the data set, or of other classes there."""
    if not scores.within(index, len(labels)):
        raise UserError(f"{flag}: its 'index' does not fit a data set of {len(labels):,} examples")
    scores.refuse_other_classes(content, labels[index], flag)


def require_common(n: int, path: str) -> None:
    """Raise `UserError` where too few examples have a number in both files."""
    if n < MIN_COMMON:
        raise UserError(
            f"--against {path}: {n} examples in common, {MIN_COMMON} are needed; both files must cover "
            "the same data (train_whole measures --n_examples)"
        )


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table, in their order."""
    lines = [list(HEADS), *(row.cells() for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "| --- " * len(HEADS) + "|", *text[1:]])


def write_csv(rows: list[Row], path: Path) -> None:
    """Write one line for each row."""
    classes = sorted({label for row in rows for label in row.per_class})
    lines = [row.csv(classes) for row in rows]
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
