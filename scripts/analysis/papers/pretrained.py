"""The table of methods on the features of a pre-trained encoder, with the gap to a joint linear probe.

`scripts/report.py pretrained FOLDER` makes it; scripts/reproduce/pretrained.sh makes the runs. Published
numbers stand beside runs on the encoder that they were made with, and beside no others.
"""

from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport
from engram.scripts.analysis.run_set import Setting, StoredRecord
from engram.scripts.analysis.table import MISSING, Column, Table, make_table, mean_std, median_text

BOUND = "linear_probe_joint"


class PretrainedReport(PaperReport):
    """One table for each benchmark and encoder, ordered by accuracy."""

    name = "pretrained"

    def cell(self, run: StoredRecord) -> Cell:
        """The method and the size of its memory, on an encoder."""
        return Cell(run.model, run.buffer_size, str(run.config.get("backbone")))

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """One table for each encoder."""
        encoders = sorted({cell.scenario for cell in cells})
        return [self._encoder_table(benchmark, encoder, cells) for encoder in encoders]

    def _encoder_table(self, benchmark: str, encoder: str, cells: Cells) -> Table:
        on_encoder = {cell: setting for cell, setting in cells.items() if cell.scenario == encoder}
        rows = sorted(on_encoder, key=lambda cell: on_encoder[cell].mean_accuracy)
        bound = next((cells[cell].mean_accuracy for cell in rows if cell.method == BOUND), None)
        columns = [
            Column("method", lambda cell: cell.method),
            Column("buffer", lambda cell: str(cell.buffer_size or MISSING)),
            Column("accuracy", lambda cell: _mean_std(cells[cell], "average_accuracy"), "max"),
            Column("published", lambda cell: self._published(benchmark, cell)),
            Column("below the joint probe", lambda cell: _gap(cells[cell], bound)),
            Column("incremental", lambda cell: _mean_std(cells[cell], "average_incremental_accuracy"), "max"),
            Column("forgetting", lambda cell: _mean_std(cells[cell], "forgetting"), "min"),
            Column("seconds", lambda cell: median_text(run.seconds.total for run in cells[cell].runs)),
            Column("seeds", lambda cell: str(len(cells[cell].runs))),
        ]
        return make_table(rows, columns, f"**{benchmark}** on {encoder}")

    def _published(self, benchmark: str, cell: Cell) -> str:
        """The number of a paper for this encoder; its values are called `encoder method`."""
        described = Cell(f"{cell.scenario} {cell.method}", cell.buffer_size)
        return self.published.of(benchmark, described)[0]


def _mean_std(setting: Setting, metric: str) -> str:
    return mean_std(setting.values("class_il", metric))


def _gap(setting: Setting, bound: float | None) -> str:
    return MISSING if bound is None else f"{100 * (bound - setting.mean_accuracy):.2f}"
