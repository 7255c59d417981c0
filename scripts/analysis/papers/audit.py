"""The audit of evaluations: how many points of accuracy each practice of published code is worth.

`scripts/report.py audit FOLDER` makes the table and the figure. A practice that changes training is the
difference of two runs whose flags differ in it alone, paired by seed; one that changes evaluation is the
difference of two numbers of one network, from the audit.json that scripts/audit_evaluation.py left beside
its results.json. scripts/reproduce/audit.sh makes the runs.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engram.scripts.analysis.pairing import pair_runs
from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport
from engram.scripts.analysis.run_set import Setting, StoredRecord
from engram.scripts.analysis.study_tables import stem
from engram.scripts.analysis.table import MISSING, Column, Table, make_table, mean_std, signed
from engram.utils.destinations import FIGURE_FORMATS
from engram.utils.errors import UserError
from engram.utils.metrics.statistics import mean_std_ci

AUDIT_NAME = "audit.json"
RESHAPED = "dualprompt_reshaped"
VIEWS = ("class_il", "task_il")
# Practice → the flags of the runs with it, and of those without.
PRACTICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "softmax of the task": ({"train_classes": "task"}, {"train_classes": "all"}),
    "pixels in [0, 1]": ({"pixel_mean": [0.0], "pixel_std": [1.0]}, {"pixel_mean": [], "pixel_std": []}),
    "as released": ({"as_released": True}, {"as_released": False}),
    "no penalty, as released": ({"ortho_lambda": 0.0}, {"ortho_lambda": 0.1}),
}
Audit = list[dict[str, Any]]  # the evaluations of one network
IN_EVALUATION = {"vote": "vote of the batch", "reshape": "reshape in evaluation"}


@dataclass(frozen=True)
class Effect:
    """A practice's effect: accuracies with and without it, each (n_seeds, 2) in %: class-IL, task-IL."""

    practice: str
    method: str
    how: str  # the order and size of test batches, where they matter
    with_it: np.ndarray
    without: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Differences with and without it in class-IL, (n_seeds,) in points."""
        return (self.with_it - self.without)[:, 0]


class AuditReport(PaperReport):
    """One table of each benchmark, and one figure."""

    name = "audit"

    def cell(self, run: StoredRecord) -> Cell:
        """The method, and the values of the flags that make a practice."""
        return Cell(run.model, run.buffer_size, json.dumps(_practised(run)))

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """The table of all practices; those whose runs are there."""
        columns = [
            Column[Effect]("practice", lambda e: e.practice),
            Column[Effect]("method", lambda e: e.method),
            Column[Effect]("test batches", lambda e: e.how or MISSING),
            Column[Effect]("without", lambda e: mean_std(e.without[:, 0], scale=1)),
            Column[Effect]("with", lambda e: mean_std(e.with_it[:, 0], scale=1)),
            Column[Effect]("points", lambda e: _signed(e.points)),
            Column[Effect]("95 %", lambda e: _interval(e.points)),
            Column[Effect]("points in task-IL", lambda e: _signed((e.with_it - e.without)[:, 1])),
            Column[Effect]("seeds", lambda e: str(len(e.points))),
        ]
        if not self.effects[benchmark]:
            return []
        first = next(iter(cells.values())).first.config
        title = f"**{benchmark}** on {first.get('backbone')}: class-IL accuracy, paired by seed"
        return [make_table(self.effects[benchmark], columns, title, n_text=3)]

    @cached_property
    def effects(self) -> dict[str, list[Effect]]:
        """Benchmark → what its runs say of each practice."""
        effects = {
            benchmark: [*_of_evaluation(list(cells.values())), *_of_runs(list(cells.values()))]
            for benchmark, cells in self.cells.items()
        }
        if not any(effects.values()):
            raise UserError(
                f"no two settings differ in one practice alone ({', '.join(PRACTICES)}), and no run has an "
                f"{AUDIT_NAME}: see scripts/reproduce/audit.sh and scripts/audit_evaluation.py"
            )
        return effects

    def write_files(self, folder: Path, formats: Sequence[str] = FIGURE_FORMATS) -> list[Path]:
        """The table as LaTeX, and a figure of each benchmark."""
        from engram.scripts.analysis import figures  # matplotlib takes a second to import
        from engram.utils import figure_files

        written = super().write_files(folder, formats)
        for benchmark, effects in self.effects.items():
            lines = {
                ", ".join(filter(None, (e.practice, e.method, e.how))): (e.practice, e.points)
                for e in effects
            }
            if lines:
                path = folder / f"audit-{stem(benchmark)}"
                written += figure_files.save_all(figures.points(lines), path, formats)
        return written


def _practised(run: StoredRecord) -> dict[str, Any]:
    """The run's values of all flags that make a practice, and what of its network learns."""
    names = ["tune", *(name for flags, _ in PRACTICES.values() for name in flags)]
    return {name: run.config[name] for name in names if name in run.config}


def _of_runs(settings: list[Setting]) -> Iterator[Effect]:
    """Practices in training: two settings that differ in nothing else."""
    for practice, (flags, other_flags) in PRACTICES.items():
        for setting in settings:
            if not _has(setting, flags):
                continue
            wanted = _without(setting, flags)
            for other in settings:
                if _has(other, other_flags) and _without(other, flags) == wanted:
                    yield Effect(practice, _named(setting), "", *_paired(setting, other))


def _has(setting: Setting, flags: Mapping[str, Any]) -> bool:
    return all(setting.first.config.get(name) == value for name, value in flags.items())


def _without(setting: Setting, names: Iterable[str]) -> dict[str, Any]:
    """The flags that say what the setting computes, without some."""
    return {name: value for name, value in setting.first.computed_flags.items() if name not in names}


def _named(setting: Setting) -> str:
    """The method, and what of its network learns if that was chosen."""
    tune = setting.first.config.get("tune")
    return setting.first.model + (f", {tune} alone" if tune not in (None, "", "full") else "")


def _paired(setting: Setting, other: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of both, (n_seeds, 2) in %, of the seeds that both ran on the same tasks."""
    pairs, _ = pair_runs(setting.runs, other.runs)
    both = [[[run.views[view].metric("average_accuracy") for view in VIEWS] for run in p] for p in pairs]
    values = 100 * np.array(both, dtype=float).reshape(-1, 2, 2)
    return values[:, 0], values[:, 1]


def _of_evaluation(settings: list[Setting]) -> Iterator[Effect]:
    """Practices in the evaluation of networks that have an audit.json; then the reshape in training too."""
    audited = [(setting.first.model, _named(setting), _audits(setting)) for setting in settings]
    for model, name, audits in audited:
        for (practice, how), values in _ways(audits).items() if model != RESHAPED else ():
            yield _evaluated(IN_EVALUATION[practice], name, how, values, audits)
    plain = next((audits for model, _, audits in audited if model == "dualprompt" and audits), {})
    for model, _, audits in audited:
        for (practice, how), values in _ways(audits).items() if model == RESHAPED else ():
            yield _evaluated(f"{practice} in training too", "dualprompt", how, values, plain)


def _evaluated(
    practice: str, method: str, how: str, values: Mapping[int, list[float]], audits: Mapping[int, Audit]
) -> Effect:
    """The effect on the accuracies of each seed, against what the seed's network has without."""
    seeds = [seed for seed in values if seed in audits]
    with_it, without = ([row[seed] for seed in seeds] for row in (values, _of_none(audits)))
    return Effect(practice, method, how, *(np.array(rows).reshape(-1, 2) for rows in (with_it, without)))


def _audits(setting: Setting) -> dict[int, Audit]:
    """Seed → the evaluations of its network; of the runs that were audited."""
    paths = {run.seed: run.folder / AUDIT_NAME for run in setting.runs}
    return {
        seed: json.loads(path.read_text(encoding="utf-8"))["evaluations"]
        for seed, path in paths.items()
        if path.exists()
    }


def _ways(audits: Mapping[int, Audit]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """(practice, test batches) → seed → accuracies of both views in %."""
    ways: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(dict)
    for seed, evaluations in audits.items():
        for row in evaluations[1:]:
            ways[row["practice"], f"{row['order']}, {row['batch_size']}"][seed] = _in_percent(row)
    return dict(sorted(ways.items(), key=lambda item: item[0][0], reverse=True))


def _of_none(audits: Mapping[int, Audit]) -> dict[int, list[float]]:
    """Seed → accuracies when the network is evaluated as its method is defined, which comes first."""
    return {seed: _in_percent(evaluations[0]) for seed, evaluations in audits.items()}


def _in_percent(row: Mapping[str, Any]) -> list[float]:
    return [100 * row[view] for view in VIEWS]


def _signed(points: np.ndarray) -> str:
    """Mean ± deviation with its sign, such as `+1.20 ± 0.31`; `0.00` has none."""
    text = mean_std(points, scale=1)
    return f"+{text}" if text != MISSING and float(text.split()[0]) > 0 else text


def _interval(points: np.ndarray) -> str:
    spread = mean_std_ci(points)
    low, high = spread.mean - spread.ci95, spread.mean + spread.ci95
    if np.isnan(spread.ci95):
        return MISSING
    return f"{signed(low)} to {signed(high)}"
