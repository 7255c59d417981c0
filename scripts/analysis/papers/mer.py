"""The MER paper's tables: RA, LA and BTI beside the published values; also CSV and a figure.

`scripts/report.py mer FOLDER` makes them; it writes mer.csv and mer.pdf, .svg and .png into the folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport, with_published
from engram.scripts.analysis.run_set import StoredRecord
from engram.scripts.analysis.table import MISSING, Column, Table, make_table, mean_std
from engram.utils import files
from engram.utils.destinations import FIGURE_FORMATS

METRICS = {"RA": "average_accuracy", "LA": "learning_accuracy", "BTI": "bti"}  # in the published order
LARGE_MEMORIES = (0, 5100, 5120)  # what the figure shows: 100 tasks of 51 samples are the paper's 5,120


class MerReport(PaperReport):
    """Retained and learning accuracy as in Riemer et al. 2019."""

    name = "mer"
    benchmarks: ClassVar = {
        "mnist-rotations": "Rotations",
        "mnist-permutations": "Permutations",
        "mnist-manypermutations": "Many Permutations",
    }

    def cell(self, run: StoredRecord) -> Cell:
        """The method with its variant, and the number of memories."""
        variant = run.config.get(f"{run.model}_variant")
        method = run.model if variant in (None, "standard", "mer") else f"{run.model} {variant}"
        many = run.dataset == "mnist-manypermutations" and run.model == "gem"
        return Cell(method, round(run.buffer_size, -2) if many else run.buffer_size)

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """One row for each setting, the largest memory first."""
        rows = sorted(cells, key=lambda cell: (-cell.buffer_size, cell.method))
        return [make_table(rows, self._columns(benchmark, cells), f"**{self.benchmarks[benchmark]}**")]

    def write_files(self, folder: Path, formats: Sequence[str] = FIGURE_FORMATS) -> list[Path]:
        """Write mer.csv, the rows of all tables, and mer.pdf, .svg, .png, accuracy over tasks."""
        written = super().write_files(folder)
        tables = dict(zip(self.cells, self.tables(), strict=True))
        if not tables:
            return written
        head = ["benchmark", *next(iter(tables.values())).head]
        rows = [[benchmark, *row] for benchmark, table in tables.items() for row in table.rows]
        csv = folder / "mer.csv"
        files.write_text(Table("", head, rows).csv(), csv)
        return [*written, csv, *(self._plot(folder / "mer", formats) if formats else [])]

    def _columns(self, benchmark: str, cells: Cells) -> list[Column[Cell]]:
        def metric_column(i: int, short_name: str, metric: str) -> Column[Cell]:
            return Column(
                f"{short_name} (published)",
                lambda cell: with_published(
                    mean_std(cells[cell].values("class_il", metric)), self.published.of(benchmark, cell)[i]
                ),
                best="max",
            )

        return [
            Column("method", lambda cell: cell.method),
            Column("memories", lambda cell: str(cell.buffer_size or MISSING)),
            *(metric_column(i, short_name, METRICS[short_name]) for i, short_name in enumerate(METRICS)),
            Column("seeds", lambda cell: str(len(cells[cell].runs))),
        ]

    def _plot(self, path: Path, formats: Sequence[str]) -> list[Path]:
        from engram.scripts.analysis import figures  # matplotlib takes a second to import
        from engram.utils import figure_files

        panels = {
            f"{self.benchmarks[benchmark]}, 5,120 memories": {
                cell.method: setting
                for cell, setting in sorted(cells.items())
                if cell.buffer_size in LARGE_MEMORIES
            }
            for benchmark, cells in self.cells.items()
        }
        drawn = {title: settings for title, settings in panels.items() if settings}
        return figure_files.save_all(figures.retained_accuracy(drawn), path, formats) if drawn else []
