"""R as CSV files in a run's folder: fractions, one row per task learned, one column per task evaluated."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from engram.utils.files import replacing
from engram.utils.runs.run_record import RunRecord


def matrix_stem(record: RunRecord, view: str) -> str:
    """The name, without its ending, of the files that show R of a view."""
    return f"accuracy_matrix_{view}" if len(record.view_names) > 1 else "accuracy_matrix"


def write_matrix_csvs(record: RunRecord, folder: Path) -> list[Path]:
    """Write R of every view in `folder`; returns the files."""
    paths = {view: folder / f"{matrix_stem(record, view)}.csv" for view in record.view_names}
    for view, path in paths.items():
        write_matrix_csv(record.views[view].R, path)
    return list(paths.values())


def write_matrix_csv(R: ArrayLike, path: Path) -> None:
    """R as fractions, one row per task learned, one column per task evaluated; empty: not evaluated."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        rows = np.asarray(R, dtype=np.float64).tolist()
        writer.writerow(["after_task", *(f"task_{j}" for j in range(len(rows)))])
        for i, row in enumerate(rows):
            writer.writerow([i, *("" if np.isnan(value) else repr(value) for value in row)])
