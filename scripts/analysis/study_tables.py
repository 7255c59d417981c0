"""The tables of the general report, which needs to know nothing of the study."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from engram.scripts.analysis.pairing import Comparison, compare, unpaired_note
from engram.scripts.analysis.run_set import RunSet, Setting, StoredRecord, commits
from engram.scripts.analysis.table import (
    MISSING,
    STANDARD_DEVIATION,
    Column,
    Table,
    make_table,
    mean_std,
    number_text,
    p_text,
    signed,
)
from engram.utils.metrics.statistics import holm
from engram.utils.runs.run_record import VIEW_NAMES
from engram.utils.sweeps.sweep import duration

METRICS = {
    "average_accuracy": "accuracy",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "learning_accuracy": "learning accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "min_acc": "min-ACC",
    "wc_acc": "worst-case accuracy",
}
CHOICES = METRICS | {"fm": "FM", "bti": "BTI", "fwt": "FWT"}  # of --metrics
IN_PAPERS = ("average_accuracy", "forgetting")  # the columns of LaTeX unless others are chosen
LOW_IS_BEST = {"forgetting", "fm"}
# Flags that say how hard a benchmark was made, and how a caption tells them.
CAPTION = {
    "n_tasks": "{n_tasks} tasks",
    "backbone": "{backbone}",
    "n_epochs": "{n_epochs} epoch(s)",
    "n_iters": "{n_iters} steps per task",
    "batch_size": "batch {batch_size}",
    "lr": "learning rate {lr}",
}
SETTING = Column[Setting]("setting", lambda s: s.label)
SEEDS = Column[Setting]("seeds", lambda s: str(len(s.runs)))


def main_table(settings: list[Setting], title: str = "") -> Table:
    """Accuracy of both views and forgetting of every setting; the tables of RESULTS.md."""
    columns = [
        Column[Setting]("method", lambda s: s.label),
        Column[Setting](
            "class-IL accuracy",
            lambda s: (
                mean_std(s.values("class_il", "average_accuracy")) if "class_il" in s.views else MISSING
            ),
        ),
        _metric_column("task_il", "average_accuracy", "task- or domain-IL accuracy"),
        Column[Setting]("forgetting", lambda s: mean_std(s.values(s.views[0], "forgetting"))),
        SEEDS,
    ]
    return make_table(settings, columns, title)


def metric_table(settings: list[Setting], view: str, chosen: Sequence[str] = tuple(METRICS)) -> Table:
    """The chosen metrics of one view that some setting has in all its runs."""
    metrics = _measured(settings, view, chosen)
    columns = [SETTING, *(_metric_column(view, metric, CHOICES[metric]) for metric in metrics), SEEDS]
    title = f"{view_name(settings, view)}, in %, mean ± standard deviation over seeds"
    return replace(make_table(settings, columns, title), bounds=_bounds(settings))


def chosen_table(settings: list[Setting], chosen: Sequence[str], title: str) -> Table:
    """The chosen metrics of every view side by side."""
    columns = [
        _metric_column(view, metric, f"{view_name(settings, view)} {CHOICES[metric]}")
        for view in settings[0].views
        for metric in _measured(settings, view, chosen)
    ]
    return make_table(settings, [Column[Setting]("method", lambda s: s.label), *columns, SEEDS], title)


def latex_table(name: str, settings: list[Setting], chosen: Sequence[str]) -> Table:
    """As a paper prints it: views are titles over metrics, the best is bold, the caption names the seeds."""
    metrics = {view: _measured(settings, view, chosen) for view in settings[0].views}
    columns = [_metric_column(view, metric, CHOICES[metric]) for view in metrics for metric in metrics[view]]
    counts = {len(setting.runs) for setting in settings}
    seeds = [SEEDS] if len(counts) > 1 else []
    over = "seeds" if seeds else "one seed" if counts == {1} else f"{counts.pop()} seeds"
    bounds = _bounds(settings)
    aside = f" ({', '.join(sorted({settings[i].first.model for i in bounds}))} aside)" if bounds else ""
    mean = "values of one seed" if over == "one seed" else f"mean ± standard deviation over {over}"
    title = f"{name}: {caption(settings)}. In %, {mean}; bold: best of each column{aside}"
    spans = [(view_name(settings, view), len(names)) for view, names in metrics.items() if names]
    return replace(
        make_table(settings, [Column[Setting]("", lambda s: s.label), *columns, *seeds], title),
        spans=(("", 1), *spans, *((("", 1),) if seeds else ())), bounds=bounds, label=stem(name),
    )  # fmt: skip


def _bounds(settings: list[Setting]) -> frozenset[int]:
    """The rows whose methods have all data at once."""
    return frozenset(i for i, setting in enumerate(settings) if setting.is_bound)


def _measured(settings: list[Setting], view: str, chosen: Sequence[str]) -> list[str]:
    """Those of the metrics that some setting has in all its runs."""
    return [m for m in chosen if any(not np.isnan(s.values(view, m)).any() for s in settings)]


def stem(benchmark: str, *words: str) -> str:
    """A benchmark's name as files, links and LaTeX's labels have it: `seq-digits-class_il-over_tasks`."""
    return "-".join([re.sub(r"[^\w.-]+", "-", benchmark), *words])


def paired_table(settings: list[Setting], view: str, baseline: str | None = None) -> Table:
    """Differences in average accuracy between two settings, seed by seed, with Holm-corrected p.

    Each setting is compared with each other one, or with the one labelled `baseline` alone.
    """
    pairs = [(a, b) for i, a in enumerate(settings) for b in settings[:i]]
    if baseline is not None:
        pairs = [
            (a, b) if b.label == baseline else (b, a) for a, b in pairs if baseline in (a.label, b.label)
        ]
    comparisons = [compare(a, b, view) for a, b in pairs]
    tested = [comparison for comparison in comparisons if comparison.test.n > 1]
    corrected = holm([comparison.test.p for comparison in tested])
    rows = [replace(row, corrected_p=p) for row, p in zip(tested, corrected, strict=True)]
    rows.sort(key=lambda row: (_nan_last(row.corrected_p), _nan_last(row.test.p)))
    note = (
        f"Paired by seed, percentage points; two-sided Student's t; Holm's correction over {len(rows)} tests."
    )
    note = " ".join(text for text in (note if rows else "", unpaired_note(comparisons)) if text)
    return make_table(rows, PAIRED_COLUMNS, f"{view_name(settings, view)} accuracy", note, n_text=2)


PAIRED_COLUMNS = [
    Column[Comparison]("setting", lambda c: c.setting.label),
    Column[Comparison]("minus", lambda c: c.baseline.label),
    Column[Comparison]("difference", lambda c: f"{signed(c.test.mean)} ± {c.test.std:.2f}"),
    Column[Comparison]("t", lambda c: MISSING if math.isnan(c.test.t) else f"{c.test.t:z.2f}"),
    Column[Comparison]("p", lambda c: p_text(c.test.p, 4)),
    Column[Comparison]("p (Holm)", lambda c: p_text(c.corrected_p, 4)),
    Column[Comparison]("pairs", lambda c: str(c.test.n)),
]


def cost_table(settings: list[Setting]) -> Table:
    """Time, speed and memory of a run."""
    columns = [
        SETTING,
        *(_seconds_column(name) for name in ("total", "train", "eval", "data")),
        Column[Setting]("images/s", lambda s: _mean(run.images_per_second for run in s.runs)),
        Column[Setting](
            "peak memory (MiB)",
            lambda s: _mean(run.peak_memory_mib for run in s.runs),
        ),
        Column[Setting]("device", lambda s: ", ".join(sorted({run.device or "unknown" for run in s.runs}))),
    ]
    return make_table(settings, columns, "Time and memory of a run, mean ± standard deviation over seeds")


def failed_table(run_set: RunSet) -> Table:
    """Runs without results, and the last lines of their logs."""
    columns = [
        Column[StoredRecord]("method", lambda run: run.model),
        Column[StoredRecord]("benchmark", lambda run: run.dataset),
        Column[StoredRecord]("seed", lambda run: str(run.seed)),
        Column[StoredRecord]("status", lambda run: run.status),
        Column[StoredRecord]("last line of the log", last_log_line),
        Column[StoredRecord]("folder", lambda run: str(run.folder)),
    ]
    return make_table(run_set.unfinished, columns, "Runs that did not finish", n_text=len(columns))


def run_table(run_set: RunSet) -> Table:
    """One row for each run, with every number as an unrounded fraction; for CSV."""
    names = sorted({name for setting in run_set.settings for name in setting.flags})
    measured = [(view, metric) for view in VIEW_NAMES for metric in METRICS]
    columns = [
        Column[tuple[Setting, StoredRecord]]("dataset", lambda row: row[1].dataset),
        Column[tuple[Setting, StoredRecord]]("scenario", lambda row: row[1].scenario),
        Column[tuple[Setting, StoredRecord]]("setting", lambda row: row[0].label),
        Column[tuple[Setting, StoredRecord]]("model", lambda row: row[1].model),
        *(_run_column(name, lambda run, name=name: run.config.get(name)) for name in names),
        _run_column("seed", lambda run: run.seed),
        *(
            _run_column(f"{view}_{metric}", lambda run, v=view, m=metric: run.views[v].metric(m))
            for view, metric in measured
        ),
        _run_column("fwt", lambda run: run.fwt),
        _run_column("seconds", lambda run: run.seconds.total),
        _run_column("peak_memory_bytes", lambda run: run.peak_memory_bytes),
        _run_column("folder", lambda run: run.folder),
    ]
    rows = [(setting, run) for setting in run_set.settings for run in setting.runs]
    return make_table(rows, columns)


def caption(settings: list[Setting]) -> str:
    """What the settings of a benchmark have in common: how it was made, and the memory if it is the same."""
    differing = {name for setting in settings for name in setting.flags}
    config = settings[0].first.config
    common = [
        text.format(**config) for name, text in CAPTION.items() if config.get(name) and name not in differing
    ]
    sizes = {s.first.config["buffer_size"] for s in settings if "buffer_size" in s.first.config}
    return ", ".join([*common, *(f"buffer {size}" for size in sizes if len(sizes) == 1)])


def provenance(runs: list[StoredRecord], deviation: str = STANDARD_DEVIATION) -> str:
    """The sentence below a table that says where its numbers come from, and what stands behind their ±."""
    devices = ", ".join(sorted({run.device or "unknown" for run in runs}))
    versions = ", ".join(sorted({run.versions.get("torch") or "unknown" for run in runs}))
    precisions = ", ".join(sorted({run.used_precision or "unknown" for run in runs}))
    timed = [run.seconds.total for run in runs if run.seconds.total is not None]
    together = f", {duration(sum(timed))} together" if len(timed) == len(runs) else ""
    cost = f"runs: {len(runs)}{together}"
    made = f"devices: {devices}; precision: {precisions}; torch: {versions}; {cost}; commits: {commits(runs)}"
    return f"In %, mean ± {deviation}. {made}."


def view_name(settings: list[Setting], view: str) -> str:
    """The name of a view in the scenario of these settings."""
    return "domain-IL" if settings[0].first.scenario == "domain-il" else VIEW_NAMES[view]


def last_log_line(run: StoredRecord) -> str:
    """The last line of the run's log that says what happened."""
    path = run.folder / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    said = [line.strip() for line in lines if line.strip() and not line.startswith("results: ")]
    return said[-1] if said else MISSING


def _metric_column(view: str, metric: str, head: str) -> Column[Setting]:
    best = "min" if metric in LOW_IS_BEST else "max"
    return Column(head, lambda setting: mean_std(setting.values(view, metric)), best)


def _seconds_column(name: str) -> Column[Setting]:
    def cell(setting: Setting) -> str:
        seconds = [getattr(run.seconds, name) for run in setting.runs]
        return MISSING if None in seconds else mean_std(seconds, scale=1, digits=1)

    return Column(f"{name} (s)", cell)


def _run_column(head: str, value: Callable[[StoredRecord], object]) -> Column[tuple[Setting, StoredRecord]]:
    """A column of one value for each run; the cell is empty where the run does not have it."""
    return Column(head, lambda row: number_text(value(row[1])))


def _mean(values: Iterable[float | None]) -> str:
    """The mean of the values that were measured, with thousands separated."""
    measured = [value for value in values if value]
    return f"{np.mean(measured):,.0f}" if measured else MISSING


def _nan_last(p: float) -> float:
    return math.inf if math.isnan(p) else p
