"""Tables of prompts, adapters, LoRA and alignment: accuracies, and each mechanism beside its own control.

`scripts/report.py prompts FOLDER` makes them; scripts/reproduce/prompts_small.sh and prompts.sh the runs. A
control is the same training with the mechanism taken away. Runs on held-out data, by which rates were
chosen, have a table of their own.
"""

import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engram.scripts.analysis.pairing import Comparison, compare
from engram.scripts.analysis.paper_report import Cell, Cells, PaperReport
from engram.scripts.analysis.run_set import RunSet, Setting, StoredRecord
from engram.scripts.analysis.table import (
    MISSING,
    Column,
    Table,
    make_table,
    mean_std,
    median_text,
    p_text,
    signed,
)
from engram.utils.metrics.statistics import holm

VIEWS = {"class_il": "class-IL", "task_il": "task-IL"}
GENERAL = ("ewc", "mas", "lwf", "er", "derpp", "maer")  # they know nothing of encoders
# Method → its controls, as the rows are called.
CONTROLS: dict[str, tuple[str, ...]] = {
    "l2p": ("sgd task head",),
    "dualprompt": ("sgd task head",),
    "coda_prompt": ("sgd task head",),
    "inflora": ("sgd task lora",),
    "sd_lora": ("sgd task lora",),
    "slca++": ("sgd task lora",),
    "slca": ("slca without alignment", "sgd task slow"),
    "aper": ("ncm", "sgd task adapter"),
    "ease": ("ncm", "sgd task adapter"),
    "ranpac first task": ("ranpac",),
    "mos": ("mos without alignment", "mos without merging", "ease", "sgd task adapter"),
    "sgd task": ("sgd all",),
    "sgd task slow": ("sgd task",),
    "sgd task adapter": ("sgd task head",),
    "sgd task lora": ("sgd task head",),
    **{method: ("sgd all",) for method in GENERAL},
    **{f"{method} adapter": ("sgd all adapter",) for method in GENERAL},
}


class PromptsReport(PaperReport):
    """Three tables for each benchmark and encoder: accuracies, differences to controls, rates tried."""

    name = "prompts"

    def __init__(self, run_set: RunSet) -> None:
        tested = [s for s in run_set.settings if s.first.evaluated_on == "test"]
        self.tuning = [s for s in run_set.settings if s.first.evaluated_on != "test"]
        super().__init__(replace(run_set, settings=tested))

    def cell(self, run: StoredRecord) -> Cell:
        """The name of the row, the size of its memory, and the encoder."""
        return Cell(row_name(run), 0, encoder(run))

    def benchmark_tables(self, benchmark: str, cells: Cells) -> list[Table]:
        """The tables of each encoder."""
        tables = []
        for name in sorted({cell.scenario for cell in cells}):
            rows = {cell.method: setting for cell, setting in cells.items() if cell.scenario == name}
            title = f"**{benchmark}** on {name}"
            tuned = [s for s in self.tuning if (s.first.dataset, encoder(s.first)) == (benchmark, name)]
            tables += [
                accuracy_table(rows, title),
                difference_table(rows, title),
                rate_table(tuned, title),
            ]
        return [table for table in tables if table.rows]


def encoder(run: StoredRecord) -> str:
    """The encoder, whether its weights are random, and the user's arrays where there are any."""
    arrays = run.config.get("arrays")
    words = [
        str(run.config.get("backbone")),
        "" if run.config.get("pretrained") or run.config.get("loadcheck") else "random weights",
        Path(str(arrays)).stem if arrays else "",
    ]
    return ", ".join(word for word in words if word)


def row_name(run: StoredRecord) -> str:
    """What a row is called: `sgd task slow`, `sgd all adapter`, `slca without alignment`, `er adapter`."""
    flags = run.config
    if flags.get("reverse_ce"):
        return "slca++"
    is_slow = run.model == "sgd" and flags.get("encoder_lr_scale", 1) < 1
    words = [
        run.model,
        str(flags.get("train_classes", "all")) if run.model == "sgd" else "",
        flags.get("tune", "full").replace("full", ""),
        "slow" if is_slow else "",
        "first task" if run.model == "ranpac" and flags.get("first_task") not in (None, "none") else "",
        "without alignment" if flags.get("ca_epochs") == 0 else "",
        "without merging" if flags.get("merge_momentum") == 0 else "",
    ]
    return " ".join(word for word in words if word)


def accuracy_table(rows: dict[str, Setting], title: str) -> Table:
    """One row for each setting, by class-IL accuracy."""
    columns = [
        Column[str]("method", lambda name: name),
        *(
            Column[str](f"{text} accuracy", lambda name, view=view: _mean_std(rows[name], view), "max")
            for view, text in VIEWS.items()
        ),
        Column[str]("learning accuracy", lambda n: mean_std(rows[n].values("class_il", "learning_accuracy"))),
        Column[str]("forgetting", lambda n: mean_std(rows[n].values("class_il", "forgetting")), "min"),
        Column[str]("rate", lambda name: rate(rows[name])),
        Column[str]("seconds", lambda name: median_text(run.seconds.total for run in rows[name].runs)),
        Column[str]("seeds", lambda name: str(len(rows[name].runs))),
    ]
    return make_table(sorted(rows, key=lambda name: rows[name].mean_accuracy), columns, title)


def rate(setting: Setting) -> str:
    """The learning rate; none for a method that trains nothing, whose runs learned no step."""
    is_trained = any(run.config.get("model") not in ("ncm", "slda") for run in setting.runs)
    plain_ranpac = row_name(setting.first) == "ranpac"
    return f"{setting.first.config['lr']:g}" if is_trained and not plain_ranpac else MISSING


def difference_table(rows: dict[str, Setting], title: str) -> Table:
    """Each method minus each of its controls, paired by seed, in both views."""
    pairs = [
        (method, control)
        for method, controls in CONTROLS.items()
        for control in controls
        if method in rows and control in rows
    ]
    for method in sorted(rows.keys() & CONTROLS.keys() - {method for method, _ in pairs}):
        missing = ", ".join(CONTROLS[method])
        print(f"{title}: {method} has none of its controls: {missing}", file=sys.stderr)
    tests = {
        view: corrected([compare(rows[method], rows[control], view) for method, control in pairs])
        for view in VIEWS
    }
    columns = [
        Column[int]("method", lambda i: pairs[i][0]),
        Column[int]("minus its control", lambda i: pairs[i][1]),
    ]
    for view, text in VIEWS.items():
        columns += [
            Column[int](f"{text}", lambda i, view=view: _difference(tests[view][i])),
            Column[int]("p (Holm)", lambda i, view=view: p_text(tests[view][i].corrected_p)),
        ]
    columns.append(Column[int]("pairs", lambda i: str(tests["class_il"][i].test.n)))
    note = (
        f"Accuracy, percentage points, paired by seed: mean [95 % interval], Student's; p corrected over the "
        f"{len(pairs)} tests of a column."
    )
    return make_table(range(len(pairs)), columns, f"{title}: methods minus controls", note, n_text=2)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with Holm's correction over all of them."""
    p_values = holm([comparison.test.p for comparison in comparisons])
    return [replace(c, corrected_p=p) for c, p in zip(comparisons, p_values, strict=True)]


def rate_table(settings: Sequence[Setting], title: str) -> Table:
    """Class-IL accuracy on held-out data of each row at each rate tried; the chosen one is marked."""
    tried = rows_of_rates(settings)
    rates = sorted({rate for by_rate in tried.values() for rate in by_rate})

    def cell(name: str, rate: float) -> str:
        by_rate = tried[name]
        if rate not in by_rate:
            return MISSING
        best = max(sorted(by_rate), key=lambda rate: by_rate[rate].mean_accuracy)
        return mean_std(by_rate[rate].values("class_il", "average_accuracy")) + " *" * (rate == best)

    columns = [
        Column[str]("method", lambda name: name),
        *(Column[str](f"{rate:g}", lambda name, rate=rate: cell(name, rate)) for rate in rates),
    ]
    note = "Class-IL accuracy on held-out training data by learning rate; * the rate that was chosen."
    return make_table(sorted(tried), columns, f"{title}: rates that were tried", note)


def rows_of_rates(settings: Sequence[Setting]) -> dict[str, dict[float, Setting]]:
    """Row → learning rate → setting; what tells settings of one name apart is named: `l2p, n_prompts 3`."""
    of_name: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings:
        of_name[row_name(setting.first)].append(setting)
    rows: dict[str, dict[float, Setting]] = defaultdict(dict)
    for name, same in of_name.items():
        flags = [setting.first.computed_flags for setting in same]
        differing = [
            flag for flag in dict.fromkeys(itertools.chain(*flags))
            if flag != "lr" and len({json.dumps(values.get(flag)) for values in flags}) > 1
        ]  # fmt: skip
        for setting, values in zip(same, flags, strict=True):
            row = ", ".join([name, *(f"{flag} {values.get(flag)}" for flag in differing)])
            rows[row][float(values["lr"])] = setting
    return rows


def _mean_std(setting: Setting, view: str) -> str:
    return mean_std(setting.values(view, "average_accuracy"))


def _difference(comparison: Comparison) -> str:
    """`+3.10 [-3.41, 9.61]`, the mean alone of one pair."""
    test = comparison.test
    if not test.n:
        return MISSING
    if math.isnan(test.ci95):
        return signed(test.mean)
    return f"{signed(test.mean)} [{test.mean - test.ci95:z.2f}, {test.mean + test.ci95:z.2f}]"
