"""Tables of the rehearsal methods, with time and memory, and the DER paper's numbers beside them.

`scripts/report.py rehearsal FOLDER` makes them; scripts/reproduce/rehearsal.sh makes the runs. Peak
memory is that of the whole process on a CPU.
"""

from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport
from engram.scripts.analysis.run_set import Setting, StoredRecord
from engram.scripts.analysis.table import MISSING, Column, Table, make_table, mean_std, median_text

# Flags that tell two settings of one method apart, and the value that the name leaves out.
VARIANTS = {"memory": "reservoir", "order": "uniform", "buffer_policy": "min"}
BUFFER = Column[Cell]("buffer", lambda cell: str(cell.buffer_size or MISSING))


class RehearsalReport(PaperReport):
    """The settings of Buzzega et al. 2020, and every rehearsal method at one setting."""

    name = "rehearsal"

    def cell(self, run: StoredRecord) -> Cell:
        """The method with what is unusual about it, and the size of its memory."""
        variants = [
            str(run.config[flag]) for flag, usual in VARIANTS.items() if run.config.get(flag, usual) != usual
        ]
        return Cell(" ".join([run.model, *variants]), run.buffer_size)

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """One row for each setting by accuracy; beside published numbers first by the memory's size."""
        beside_paper = benchmark in self.published.values
        rows = sorted(
            cells, key=lambda cell: (cell.buffer_size if beside_paper else 0, cells[cell].mean_accuracy)
        )
        sizes = ", ".join(map(str, _sizes(cells)))
        title = f"**{benchmark}**" + ("" if beside_paper else f", buffer {sizes}")
        columns = self._published_columns(benchmark, cells) if beside_paper else self._view_columns(cells)
        return [make_table(rows, [*columns, *self._cost_columns(cells)], title)]

    def _view_columns(self, cells: Cells) -> list[Column[Cell]]:
        return [
            Column("method", lambda cell: cell.method),
            *([BUFFER] if len(_sizes(cells)) > 1 else []),
            Column(
                "class-IL accuracy",
                lambda cell: _mean_std(cells[cell], "class_il", "average_accuracy"),
                "max",
            ),
            Column(
                "task-IL accuracy", lambda cell: _mean_std(cells[cell], "task_il", "average_accuracy"), "max"
            ),
            Column("forgetting", lambda cell: _mean_std(cells[cell], "class_il", "forgetting"), "min"),
        ]

    def _published_columns(self, benchmark: str, cells: Cells) -> list[Column[Cell]]:
        return [
            Column("method", lambda cell: cell.method),
            BUFFER,
            Column("accuracy", lambda cell: _mean_std(cells[cell], "class_il", "average_accuracy"), "max"),
            Column("published", lambda cell: self.published.of(benchmark, cell)[0]),
            Column("forgetting", lambda cell: _mean_std(cells[cell], "class_il", "forgetting"), "min"),
        ]

    def _cost_columns(self, cells: Cells) -> list[Column[Cell]]:
        return [
            Column("seconds", lambda cell: median_text(run.seconds.total for run in cells[cell].runs)),
            Column(
                "peak MB",
                lambda cell: median_text(run.peak_memory_mib for run in cells[cell].runs),
            ),
            Column("seeds", lambda cell: str(len(cells[cell].runs))),
        ]


def _sizes(cells: Cells) -> list[int]:
    """All sizes of the memory that occur."""
    return sorted({cell.buffer_size for cell in cells if cell.buffer_size})


def _mean_std(setting: Setting, view: str, metric: str) -> str:
    return mean_std(setting.values(view, metric))
