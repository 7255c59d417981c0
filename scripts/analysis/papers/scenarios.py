"""Tables of the three scenarios: average accuracy beside the published one, and the strength λ.

`scripts/report.py scenarios FOLDER` makes them; scripts/reproduce/scenarios.sh makes the runs.
"""

from collections.abc import Callable
from typing import ClassVar

from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport, with_published
from engram.scripts.analysis.run_set import Setting, StoredRecord
from engram.scripts.analysis.table import MISSING, Column, Table, make_table, mean_error

SCENARIOS = ("task-il", "domain-il", "class-il")  # in the published order
STRENGTHS = ("e_lambda", "mas_lambda", "si_c", "rwalk_lambda", "imm_lambda", "lwf_lambda", "ebll_alpha")


class ScenariosReport(PaperReport):
    """Average accuracy in each scenario as in van de Ven & Tolias 2019."""

    name = "scenarios"
    benchmarks: ClassVar = {"seq-mnist": "Split MNIST", "perm-mnist": "Permuted MNIST"}
    compared_with: ClassVar[str] = "published"  # what stands in parentheses

    @property
    def deviation(self) -> str:
        """The standard error, as published."""
        return "standard error over seeds (standard deviation / √n), as published"

    def cell(self, run: StoredRecord) -> Cell:
        """The method, with its form where it has two, in a scenario."""
        online = run.model == "ewc" and run.config["ewc_mode"] == "online"
        return Cell(f"{run.model} online" if online else run.model, scenario=run.scenario)

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """One row for each method, the paper's first and in its order; one column for each scenario."""
        methods = {cell.method for cell in cells}
        in_paper = [method for method in self.published.values[benchmark] if method in methods]
        rows = [*in_paper, *sorted(methods.difference(in_paper))]
        title = f"**{self.benchmarks[benchmark]}**: {_common_flags(cells)}"
        return [make_table(rows, self._columns(benchmark, cells), title)]

    def _columns(self, benchmark: str, cells: Cells) -> list[Column[str]]:
        def scenario_column(i: int, scenario: str) -> Column[str]:
            def text(method: str) -> str:
                published = self.published.of(benchmark, Cell(method))[i]
                return _accuracy_and_strength(cells.get(Cell(method, scenario=scenario)), published)

            return Column(f"{scenario} ({self.compared_with})", text, best="max")

        return [
            Column("method", lambda method: method),
            *(scenario_column(i, scenario) for i, scenario in enumerate(SCENARIOS)),
            Column("seeds", lambda method: _seeds(cells, method)),
        ]


def _accuracy_and_strength(setting: Setting | None, published: str) -> str:
    """`98.70 ± 0.10 (98.64 ± 0.22), λ 100000`; both ± are standard errors of the mean."""
    if setting is None:
        return with_published(MISSING, published)
    accuracy = mean_error(setting.values(view_of(setting), "average_accuracy"))
    config = setting.first.config
    strength = ", ".join(f"{config[name]:g}" for name in STRENGTHS if name in config)
    return with_published(accuracy, published) + (f", λ {strength}" if strength else "")


def view_of(setting: Setting) -> str:
    """The view of R that the paper's accuracy in the setting's scenario is made of."""
    return "class_il" if setting.first.scenario == "class-il" else "task_il"


def _seeds(cells: Cells, method: str) -> str:
    """How many runs stand behind each accuracy of a row: `5`, or `– / 20 / 2` where the columns differ."""
    settings = [cells.get(Cell(method, scenario=scenario)) for scenario in SCENARIOS]
    counts = [MISSING if setting is None else str(len(setting.runs)) for setting in settings]
    return counts[0] if len(set(counts)) == 1 else " / ".join(counts)


def _common_flags(cells: Cells) -> str:
    """What all runs of a benchmark share."""
    # joint has one task, as long as the others' all together
    settings = [s for cell, s in cells.items() if cell.method != "joint"] or list(cells.values())
    runs = [run for setting in settings for run in setting.runs]

    def values(read: Callable[[StoredRecord], object]) -> str:
        return ", ".join(sorted({str(read(run)) for run in runs}))

    units = values(lambda run: "-".join(map(str, run.config["hidden_sizes"])))
    steps, batch, lr = (
        values(lambda run, flag=flag: run.config[flag]) for flag in ("n_iters", "batch_size", "lr")
    )
    init = values(lambda run: run.config.get("mlp_init", "xavier"))  # older runs knew no other
    data = values(lambda run: run.evaluated_on)
    steps = f"{steps} steps per task of {batch} samples"
    return f"{units} units, weights drawn as {init}, {steps}, Adam {lr}; {data} data"
