"""The memorization paper's tables: accuracy and FM by policy and size of the memory.

`scripts/report.py memorization FOLDER` makes them, and writes memorization.tex and memorization.csv into the
folder. Differences are paired by seed against the class-balanced reservoir (`er --memory balanced`), with
their standard deviation, t statistic and two-sided p, also corrected over a benchmark's tests (Holm). From
the paper's own runs, imported by scripts/interop/import_mlruns.py, come the tables that it printed, whose ±
has ddof = 0; settings that it ran again under another name stand in a table of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from engram.memorization.runs import setting_name
from engram.scripts.analysis.pairing import Comparison, compare, unpaired_note
from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport, bounds
from engram.scripts.analysis.run_set import Setting, StoredRecord
from engram.scripts.analysis.table import (
    MISSING,
    STANDARD_DEVIATION,
    Column,
    Table,
    make_table,
    mean_population_std,
    mean_std,
    number_text,
    p_text,
    signed,
)
from engram.utils import files
from engram.utils.metrics.statistics import holm

BASELINE = "er balanced"
AS_PRINTED = "standard deviation over seeds as the paper prints it (ddof = 0; of differences ddof = 1)"
ORDER = ("er", BASELINE, "maer min", "maer middle", "maer max", "maer_high min", "maer_adaptive")


class MemorizationReport(PaperReport):
    """Policies of the memory against a class-balanced reservoir."""

    name = "memorization"

    def cell(self, run: StoredRecord) -> Cell:
        """The method with its policy, and the size of its memory."""
        return Cell(setting_name(run.config, self._proxies_differ), run.buffer_size)

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """Accuracy, forgetting and paired differences: one row for each method, one column for each size."""
        comparisons = _comparisons(cells)

        n_runs = partial(_n_runs, cells)
        contents: dict[str, tuple[Callable[[Cell], str], Callable[[Cell], int]]] = {
            "class-IL accuracy": (lambda cell: self._metric(cells, cell, "average_accuracy"), n_runs),
            "FM (forgetting over tasks)": (lambda cell: self._metric(cells, cell, "fm"), n_runs),
            f"accuracy minus {BASELINE}, paired by seed": (
                lambda cell: _difference(comparisons.get(cell)),
                lambda cell: _n_pairs(comparisons.get(cell)),
            ),
        }
        tables = []
        for title, (text, count) in contents.items():
            columns = [*_size_columns(cells, text), _seeds_column(cells, count)]
            table = make_table(_methods(cells), columns, f"**{benchmark}**: {title}")
            rows = [row for row in table.rows if set(row[1:]) != {MISSING}]
            tables.append(replace(table, rows=rows))
        tables[-1] = replace(tables[-1], note=unpaired_note(comparisons.values()))
        return [table for table in [*tables, self._campaign_table(benchmark)] if table.rows]

    def write_files(self, folder: Path, formats: Sequence[str] = ()) -> list[Path]:
        """Write memorization.tex, accuracy and FM side by side, and memorization.csv, every run."""
        tex, csv = folder / "memorization.tex", folder / "memorization.csv"
        tables = [self._latex_table(benchmark, cells).latex() for benchmark, cells in self.cells.items()]
        files.write_text("\n\n".join(tables) + "\n", tex)
        files.write_text(self._run_table().csv(), csv)
        return [tex, csv]

    def _run_table(self) -> Table:
        columns = [
            Column[tuple[Cell, StoredRecord]]("dataset", lambda row: row[1].dataset),
            Column[tuple[Cell, StoredRecord]]("setting", lambda row: row[0].method),
            Column[tuple[Cell, StoredRecord]]("buffer_size", lambda row: str(row[0].buffer_size)),
            Column[tuple[Cell, StoredRecord]]("campaign", lambda row: row[1].campaign),
            Column[tuple[Cell, StoredRecord]]("seed", lambda row: str(row[1].seed)),
            *(
                Column[tuple[Cell, StoredRecord]](
                    head, lambda row, metric=metric: number_text(row[1].class_il.metric(metric))
                )
                for head, metric in (("accuracy", "average_accuracy"), ("fm", "fm"), ("forgetting",) * 2)
            ),
        ]
        rows = [
            (cell, run)
            for benchmark, cells in self.cells.items()
            for cell, setting in [*sorted(cells.items()), *self.other_campaigns[benchmark]]
            for run in setting.runs
        ]
        return make_table(rows, columns)

    def _latex_table(self, benchmark: str, cells: Cells) -> Table:
        """Accuracy and FM in two columns for each size, as the paper prints them."""
        sizes = _sizes(cells)
        head = ["buffer", *["Acc", "FM"] * len(sizes)]
        rows = [
            [method, *(self._metric(cells, Cell(method, size), metric) for size in sizes
                       for metric in ("average_accuracy", "fm"))]
            for method in _methods(cells)
        ]  # fmt: skip
        spans = (("", 1), *((str(size), 2) for size in sizes))
        table = Table(benchmark, head, rows, spans=spans, best=("", *["max", "min"] * len(sizes)))
        return replace(table, bounds=bounds(table))

    def _campaign_table(self, benchmark: str) -> Table:
        """The campaigns of imported runs that stand behind another one of the same cell."""
        columns = [
            Column[tuple[Cell, Setting]]("buffer", lambda row: row[0].method),
            Column[tuple[Cell, Setting]]("size", lambda row: str(row[0].buffer_size)),
            Column[tuple[Cell, Setting]]("campaign", lambda row: row[1].first.campaign or MISSING),
            Column[tuple[Cell, Setting]]("accuracy", lambda row: self._values(row[1], "average_accuracy")),
            Column[tuple[Cell, Setting]]("FM", lambda row: self._values(row[1], "fm")),
            Column[tuple[Cell, Setting]]("seeds", lambda row: str(len(row[1].seeds))),
        ]
        rows = sorted(self.other_campaigns[benchmark], key=lambda row: (row[0], row[1].first.campaign))
        title = f"**{benchmark}**: other campaigns of these settings"
        return make_table(rows, columns, title)

    def _metric(self, cells: Cells, cell: Cell, metric: str) -> str:
        setting = _setting(cells, cell)
        return self._values(setting, metric) if setting else MISSING

    def _values(self, setting: Setting, metric: str) -> str:
        text = mean_population_std if self._all_imported else mean_std
        return text(setting.values("class_il", metric))

    @property
    def deviation(self) -> str:
        """Of imported runs the paper's, so that its tables come out as printed."""
        return AS_PRINTED if self._all_imported else STANDARD_DEVIATION

    @cached_property
    def _all_imported(self) -> bool:
        return all(run.imported_run is not None for run in self.run_set.runs)

    @cached_property
    def _proxies_differ(self) -> bool:
        """Whether the runs used several proxies of memorization, which must then be told apart."""
        proxies = {run.config["mem_proxy"] for run in self.run_set.runs if run.config.get("mem_proxy")}
        return len(proxies) > 1


def _methods(cells: Cells) -> list[str]:
    """The rows: the paper's order, then others by name; joint training last."""
    rank = {method: i for i, method in enumerate(ORDER)}
    methods = {cell.method for cell in cells}
    return sorted(methods, key=lambda method: (method == "joint", rank.get(method, len(rank)), method))


def _sizes(cells: Cells) -> list[int]:
    """The columns: all sizes of the memory that occur."""
    return sorted({cell.buffer_size for cell in cells if cell.buffer_size})


def _grid(cells: Cells) -> list[Cell]:
    return [Cell(method, size) for method in _methods(cells) for size in _sizes(cells)]


def _setting(cells: Cells, cell: Cell) -> Setting | None:
    """The setting of a cell; a method without a memory, such as joint training, stands in every column."""
    return cells.get(cell) or cells.get(Cell(cell.method))


def _compare(cells: Cells, cell: Cell) -> Comparison | None:
    """The setting of a cell against the baseline with a memory of the same size."""
    setting, baseline = _setting(cells, cell), cells.get(Cell(BASELINE, cell.buffer_size))
    if cell.method == BASELINE or setting is None or baseline is None:
        return None
    return compare(setting, baseline, "class_il")


def _comparisons(cells: Cells) -> dict[Cell, Comparison]:
    """Each cell's comparison with the baseline, where there is one; p is corrected over all of them."""
    made = {cell: comparison for cell in _grid(cells) if (comparison := _compare(cells, cell))}
    corrected = holm([comparison.test.p for comparison in made.values()])
    return {
        cell: replace(comparison, corrected_p=p)
        for (cell, comparison), p in zip(made.items(), corrected, strict=True)
    }


def _n_runs(cells: Cells, cell: Cell) -> int:
    setting = _setting(cells, cell)
    return len(setting.runs) if setting else 0


def _n_pairs(comparison: Comparison | None) -> int:
    """How many pairs of runs a difference is the mean of; 0 where it is not shown."""
    return 0 if comparison is None or comparison.test.n < 2 else comparison.test.n


def _difference(comparison: Comparison | None) -> str:
    """`+5.00 ± 1.58 (t 7.1, p 0.002, Holm 0.010)`; `–` without two seeds in common."""
    if comparison is None or not _n_pairs(comparison):
        return MISSING
    test, corrected = comparison.test, p_text(comparison.corrected_p)
    return f"{signed(test.mean)} ± {test.std:.2f} (t {test.t:z.1f}, p {p_text(test.p)}, Holm {corrected})"


def _seeds_column(cells: Cells, count: Callable[[Cell], int]) -> Column[str]:
    """How many seeds stand behind each number of a row: `5`, or `5 / 4 / –` where the columns differ."""

    def text(method: str) -> str:
        counts = [count(Cell(method, size)) for size in _sizes(cells)]
        if len(shown := {n for n in counts if n}) <= 1:
            return str(shown.pop()) if shown else MISSING
        return " / ".join(str(n or MISSING) for n in counts)

    return Column[str]("seeds", text)


def _size_columns(cells: Cells, text: Callable[[Cell], str]) -> list[Column[str]]:
    """The method, then the text of each size of the memory."""
    by_size = [
        Column[str](str(size), lambda method, size=size: text(Cell(method, size))) for size in _sizes(cells)
    ]
    return [Column[str]("buffer size", lambda method: method), *by_size]
