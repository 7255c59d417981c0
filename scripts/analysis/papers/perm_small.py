"""Tables of the three scenarios at a smaller size, beside the original code on the same permutations.

`scripts/report.py perm-small FOLDER` makes them; `scripts/reproduce/scenarios.sh perm-small` makes our runs.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import yaml

from engram.scripts.analysis.paper_report import PAPERS_DIR, Cell, Cells, Published
from engram.scripts.analysis.papers.scenarios import SCENARIOS, ScenariosReport, view_of
from engram.scripts.analysis.run_set import Setting
from engram.scripts.analysis.table import MISSING, Column, Table, make_table, mean_error, signed
from engram.utils.metrics.statistics import paired


@dataclass(frozen=True)
class OriginalRuns:
    """What runs of the original code ended at: benchmark → method → scenario → seed → accuracy in %."""

    source: str
    values: dict[str, dict[str, dict[str, dict[int, float]]]]

    @classmethod
    def read(cls, name: str) -> "OriginalRuns":
        """The file of that name beside the papers' published numbers."""
        content = yaml.safe_load((PAPERS_DIR / f"original_{name}.yaml").read_text(encoding="utf-8"))
        return cls(content["source"], content["values"])

    def of(self, benchmark: str, method: str, scenario: str) -> dict[int, float]:
        """Seed → accuracy; empty where the original was not run."""
        return self.values.get(benchmark, {}).get(method, {}).get(scenario, {})


class PermSmallReport(ScenariosReport):
    """Average accuracy beside the original code's, and the differences seed by seed."""

    name = "perm-small"
    benchmarks: ClassVar = {"perm-mnist": "Permuted MNIST at a smaller size"}
    compared_with = "original"

    @cached_property
    def original(self) -> OriginalRuns:
        """The runs of the original code."""
        return OriginalRuns.read("perm_small")

    @cached_property
    def published(self) -> Published:
        """Their means and standard errors, which stand where other tables have a paper's numbers."""
        values = {
            benchmark: {
                method: [_mean_error(scenarios.get(scenario, {})) for scenario in SCENARIOS]
                for method, scenarios in methods.items()
            }
            for benchmark, methods in self.original.values.items()
        }
        return Published(self.original.source, list(SCENARIOS), values)

    @property
    def deviation(self) -> str:
        """A standard error beside an accuracy, an interval beside a difference."""
        return (
            "standard error over seeds (standard deviation / √n); beside a difference the half-width of its "
            "95 % interval (Student's)"
        )

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """The accuracies, and the differences to the original's."""
        (accuracies,) = super().benchmark_tables(benchmark, cells)
        n_tasks = ", ".join(sorted({str(s.first.n_tasks) for s in cells.values()}))
        accuracies = replace(
            accuracies,
            title=f"{accuracies.title}; {n_tasks} tasks",
            note=f"In parentheses: {self.original.source}.",
        )

        def scenario_column(scenario: str) -> Column[list[str]]:
            return Column(scenario, lambda row: self._difference(benchmark, cells, row[0], scenario))

        columns = [Column[list[str]]("method", lambda row: row[0]), *map(scenario_column, SCENARIOS)]
        title = "**Ours minus the original's**: in points, paired by seed"
        return [accuracies, make_table(accuracies.rows, columns, title)]

    def _difference(self, benchmark: str, cells: Cells, method: str, scenario: str) -> str:
        ours = _accuracies(cells.get(Cell(method, scenario=scenario)))
        theirs = self.original.of(benchmark, method, scenario)
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            return MISSING
        test = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
        return signed(test.mean) + (f" ± {test.ci95:.2f}" if test.n > 1 else "")


def _accuracies(setting: Setting | None) -> dict[int, float]:
    """Seed → average accuracy in %."""
    if setting is None:
        return {}
    values = setting.values(view_of(setting), "average_accuracy")
    return {seed: 100 * value for seed, value in zip(setting.seeds, values, strict=True)}


def _mean_error(accuracies: dict[int, float]) -> str | None:
    """`93.30 ± 0.20`; None where there is nothing."""
    return mean_error(list(accuracies.values()), scale=1) if accuracies else None
