"""Paper reports: what the tables beside published numbers share.

A cell of such a table is one setting: runs that differ in their seed alone. A paper's file in papers/
declares what a cell is called, the columns, and what is special; its published numbers lie beside it in YAML.
"""

import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from engram.scripts.analysis.run_set import BOUNDS, RunSet, Setting, StoredRecord
from engram.scripts.analysis.table import MISSING, STANDARD_DEVIATION, Table
from engram.utils import files
from engram.utils.destinations import FIGURE_FORMATS
from engram.utils.errors import UserError

PAPERS_DIR = Path(__file__).with_name("papers")

# Methods that are another one with a flag, and the row in which such runs stand.
ROW_NAMES = {
    "cbrs": "er balanced", "er_alg4": "er alg4", "er_alg5": "er alg5", "er_ring": "er class_ring",
    "ewc_online": "ewc online", "ewc_separate": "ewc", "grasp": "full_buffer grasp",
    "labrs": "er loss_aware_balanced", "lars": "er loss_aware",
    "mer_alg6": "mer alg6", "mer_alg7": "mer alg7",
}  # fmt: skip


class Cell(NamedTuple):
    """Where a setting stands in a paper's tables; what a paper does not tell apart stays empty."""

    method: str
    buffer_size: int = 0
    scenario: str = ""


Cells = dict[Cell, Setting]  # of one benchmark


@dataclass(frozen=True)
class Published:
    """Numbers of a paper, in %: benchmark → `method` or `method buffer_size` → a value for each column.

    A ~ before a number, or before its error alone, marks what is recalled, not read in the paper: it says
    only where a number should lie.
    """

    source: str
    columns: list[str]
    values: dict[str, dict[str, list[Any]]]

    @classmethod
    def read(cls, name: str) -> "Published":
        """The file of the paper of that name."""
        content = yaml.safe_load((PAPERS_DIR / f"published_{name}.yaml").read_text(encoding="utf-8"))
        return cls(content["source"], content["columns"], content["values"])

    def of(self, benchmark: str, cell: Cell) -> list[str]:
        """One text for each column; `–` where the paper has no number."""
        name = f"{cell.method} {cell.buffer_size}" if cell.buffer_size else cell.method
        values = self.values.get(benchmark, {}).get(name, [None] * len(self.columns))
        return [MISSING if value is None else str(value) for value in values]


class PaperReport(ABC):
    """The tables of one paper, from the runs below the folders that the user named."""

    name: ClassVar[str]  # the word on the command line
    benchmarks: ClassVar[dict[str, str]] = {}  # data set → title; empty: every data set is shown

    def __init__(self, run_set: RunSet) -> None:
        self.run_set = run_set
        # benchmark → cell and setting of campaigns of imported runs that stand behind the one in `cells`
        self.other_campaigns: dict[str, list[tuple[Cell, Setting]]] = defaultdict(list)

    @cached_property
    def published(self) -> Published:
        """The numbers that the paper printed."""
        return Published.read(self.name)

    @property
    def deviation(self) -> str:
        """What stands behind the ± of its tables."""
        return STANDARD_DEVIATION

    @abstractmethod
    def cell(self, run: StoredRecord) -> Cell:
        """Where a run's setting stands."""

    @abstractmethod
    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """The tables of one benchmark."""

    @cached_property
    def cells(self) -> dict[str, Cells]:
        """Benchmark → its cells; raises `UserError` if one cell had to hold runs of several settings.

        Of imported runs, the latest of each seed counts, and one campaign of each cell: see `_precedence`.
        """
        for run in self.run_set.repeated:
            if self._shows(run) and run.imported_run is None:
                _refuse_repeated(run, self.run_set.settings)
        benchmarks: dict[str, Cells] = defaultdict(dict)
        tested = {s.first.dataset for s in self.run_set.settings if s.first.evaluated_on == "test"}
        for setting in self.run_set.settings:
            if setting.first.evaluated_on != "test" and setting.first.dataset in tested:
                print(f"left out: {setting.label}, evaluated on validation data", file=sys.stderr)
            elif self._shows(setting.first):
                self._place(benchmarks[setting.first.dataset], setting)
        order = [name for name in self.benchmarks or benchmarks if name in benchmarks]
        return {name: benchmarks[name] for name in order}

    def tables(self) -> list[Table]:
        """The tables of all benchmarks; the rows of methods that have all data at once are bounds."""
        tables = [table for name, cells in self.cells.items() for table in self.benchmark_tables(name, cells)]
        return [replace(table, bounds=bounds(table)) for table in tables]

    def markdown(self) -> str:
        """The tables of all benchmarks as Markdown."""
        return "\n\n".join(table.markdown() for table in self.tables())

    def write_files(self, folder: Path, formats: Sequence[str] = FIGURE_FORMATS) -> list[Path]:
        """Write the tables as LaTeX into the folder; returns the files.

        formats: those of figures, where a paper has one.
        """
        path = folder / f"{self.name}.tex"
        text = "\n\n".join(table.latex() for table in self.tables() if table.rows)
        files.write_text(f"% needs \\usepackage{{booktabs}}\n{text}\n", path)
        return [path]

    def _place(self, cells: Cells, setting: Setting) -> None:
        """Put a setting into its cell, or beside it if the cell holds a campaign that goes before it."""
        cell = self._cell(setting.first)
        if cell in cells:
            other = cells[cell]
            if None in (setting.first.imported_run, other.first.imported_run):
                _refuse_differing(other.first, setting.first)
            behind, setting = sorted((other, setting), key=_precedence)
            self.other_campaigns[setting.first.dataset].append((cell, behind))
        cells[cell] = setting

    def _cell(self, run: StoredRecord) -> Cell:
        """The cell of a run, in whichever of two ways its method was named on the command line."""
        cell = self.cell(run)
        return cell._replace(method=ROW_NAMES.get(cell.method, cell.method))

    def _shows(self, run: StoredRecord) -> bool:
        return not self.benchmarks or run.dataset in self.benchmarks


def bounds(table: Table) -> frozenset[int]:
    """The rows whose first cell names a method that has all data at once."""
    return frozenset(i for i, row in enumerate(table.rows) if row[0].split()[0] in BOUNDS)


def with_published(ours: str, published: str) -> str:
    """Our number with the published one in parentheses: `89.38 (89.56)`."""
    return f"{ours} ({published})"


def _precedence(setting: Setting) -> tuple[bool, int, float]:
    """What decides, highest first, which campaign of imported runs stands in a cell.

    An experiment with a name before MLflow's `Default`, then more seeds, then a later end.
    """
    named = setting.first.config.get("experiment_name") != "Default"
    return named, len(setting.runs), max(run.written for run in setting.runs)


def _refuse_repeated(run: StoredRecord, settings: list[Setting]) -> None:
    """Two runs of one seed: which one counts is for the user to say."""
    counted = next(
        other
        for setting in settings
        if setting.first.computed_flags == run.computed_flags
        for other in setting.runs
        if other.seed == run.seed
    )
    raise UserError(
        f"{run.folder} and {counted.folder} are two runs of seed {run.seed} of one setting; remove one"
    )


def _refuse_differing(run: StoredRecord, other: StoredRecord) -> None:
    """Two settings in one cell: the deviation over their runs is not one over seeds."""
    a, b = run.computed_flags, other.computed_flags
    differing = [f"--{name} ({a.get(name)}, {b.get(name)})" for name in a | b if a.get(name) != b.get(name)]
    raise UserError(
        f"{run.folder} and {other.folder} belong in one cell of the table, but differ in more than the seed: "
        f"{', '.join(differing)}; name folders without one of them, or leave out the paper's name for a "
        "table that keeps all settings apart"
    )
