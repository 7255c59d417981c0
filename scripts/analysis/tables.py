"""Tables: rows of text, written as Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
import math
from dataclasses import dataclass

import numpy as np

from engram.scripts.analysis.run_set import Setting, Study, left_out, pairs
from engram.utils.metrics.statistics import Paired, holm, mean_std_ci, paired

MISSING = "–"
VIEW_NAMES = {"class_il": "class-IL", "task_il": "task-IL"}
METRICS = {
    "average_accuracy": "accuracy",
    "forgetting": "forgetting",
    "bwt": "BWT",
    "learning_accuracy": "learning accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "min_acc": "min-ACC",
    "wc_acc": "worst-case accuracy",
}
LATEX = {
    "±": r"$\pm$",
    "λ": r"$\lambda$",
    "–": "--",
    "−": "$-$",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
}


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of as many cells; the first column is text, the others are numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    n_text: int = 1

    def markdown(self) -> str:
        """A pipe table under its title."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join(part for part in (self.title, body, self.note) if part)

    def latex(self) -> str:
        """A booktabs table."""
        columns = "l" * self.n_text + "r" * (len(self.head) - self.n_text)
        lines = [" & ".join(map(_latex, line)) + r" \\" for line in [self.head, *self.rows]]
        inner = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        caption = _latex(self.title.replace("**", "") + (f". {self.note}" if self.note else ""))
        head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        body = [rf"\begin{{tabular}}{{{columns}}}", *inner, r"\end{tabular}"]
        return "\n".join([*head, *body, r"\end{table}"])

    def html(self) -> str:
        """A table in a box that scrolls sideways."""
        kinds = ["text"] * self.n_text + ["number"] * (len(self.head) - self.n_text)
        rows = []
        for tag, line in [("th", self.head), *(("td", row) for row in self.rows)]:
            cells = zip(kinds, line, strict=True)
            rows.append("".join(f'<{tag} class="{k}">{html.escape(c)}</{tag}>' for k, c in cells))
        body = f"<thead><tr>{rows[0]}</tr></thead><tbody>" + "".join(f"<tr>{r}</tr>" for r in rows[1:])
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        return f'<div class="scroll"><table>{body}</tbody></table></div>{note}'


def main_table(settings: list[Setting]) -> Table:
    """Accuracy of both views and forgetting of every setting, for the README too."""
    rows = []
    for setting in settings:
        views = ["class_il" if "class_il" in setting.views else None, "task_il"]
        cells = [shown(setting.values(v, "average_accuracy")) if v else MISSING for v in views]
        cells.append(shown(setting.values(views[0] or "task_il", "forgetting")))
        rows.append([setting.label, *cells, str(len(setting.runs))])
    head = ["method", "class-IL accuracy", "task- or domain-IL accuracy", "forgetting", "seeds"]
    return Table("", head, rows)


def metric_table(settings: list[Setting], view: str) -> Table:
    """Every metric of one view that some setting has."""
    metrics = [m for m in METRICS if any(s.values(view, m) is not None for s in settings)]
    rows = [[s.label, *(shown(s.values(view, m)) for m in metrics), str(len(s.runs))] for s in settings]
    title = f"{view_name(settings, view)}, in %, mean ± standard deviation over seeds"
    return Table(title, ["setting", *(METRICS[m] for m in metrics), "seeds"], rows)


def paired_table(settings: list[Setting], view: str, against: str | None = None) -> Table:
    """Differences in average accuracy between two settings, seed by seed, with Holm-corrected p."""
    asked = [(a, b) for i, a in enumerate(settings) for b in settings[:i]]
    if against is not None:
        asked = [(a, b) if b.label == against else (b, a) for a, b in asked if against in (a.label, b.label)]
    found = [(a, b, *pairs(a.runs, b.runs)) for a, b in asked]
    tested = [(a, b, _test(runs, view)) for a, b, runs, _ in found if len(runs) > 1]
    corrected = holm([test.p for *_, test in tested])
    rows = [
        [a.label, b.label, f"{100 * t.mean:+.2f} ± {100 * t.std:.2f}", _number(t.t), _p(t.p), _p(p), str(t.n)]
        for (a, b, t), p in sorted(
            zip(tested, corrected, strict=True), key=lambda item: (_order(item[1]), _order(item[0][2].p))
        )
    ]
    head = ["setting", "minus", "difference", "t", "p", "p (Holm)", "pairs"]
    note = (
        f"Paired by seed, percentage points; two-sided Student's t; Holm's correction over {len(rows)} tests."
    )
    others = left_out(seed for *_, seeds in found for seed in seeds)
    note = " ".join(part for part in (note if rows else "", others) if part)
    return Table(f"{view_name(settings, view)} accuracy", head, rows, note, n_text=2)


def cost_table(settings: list[Setting]) -> Table:
    """Time, speed and memory of a run."""
    rows = []
    for s in settings:
        seconds = [
            [run["seconds"].get(part) for run in s.runs] for part in ("total", "train", "eval", "data")
        ]
        speed = [run["images_per_second"] for run in s.runs if run["images_per_second"]]
        memory = [run["peak_memory_bytes"] / 2**20 for run in s.runs if run.get("peak_memory_bytes")]
        cells = [shown(part, scale=1, digits=1) for part in seconds]
        cells += [
            f"{np.mean(speed):,.0f}" if speed else MISSING,
            f"{np.mean(memory):,.0f}" if memory else MISSING,
        ]
        rows.append([s.label, *cells, ", ".join(sorted({run["device"] for run in s.runs}))])
    head = [
        "setting",
        "total (s)",
        "train (s)",
        "eval (s)",
        "data (s)",
        "images/s",
        "peak memory (MiB)",
        "device",
    ]
    return Table("Time and memory of a run, mean ± standard deviation over seeds", head, rows)


def failed_table(study: Study) -> Table:
    """Runs without results, and what they last said."""
    rows = []
    for run in study.unfinished:
        config = run["config"]
        said = [run["status"], last_words(run), str(run["path"])]
        rows.append([config["model"], config["dataset"], str(config["seed"]), *said])
    return Table(
        "Runs that did not finish",
        ["method", "benchmark", "seed", "status", "said", "folder"],
        rows,
        n_text=6,
    )


def last_words(document: dict) -> str:
    """The last line of the run's log that says what happened."""
    path = document["path"] / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    told = [line.strip() for line in lines if line.strip() and not line.startswith("results: ")]
    return told[-1] if told else MISSING


def write_csv(study: Study) -> str:
    """One row a run, every number as a fraction, unrounded."""
    names = sorted({name for setting in study.settings for name in setting.told})
    columns = [f"{view}_{metric}" for view in VIEW_NAMES for metric in METRICS]
    head = [
        "dataset",
        "scenario",
        "setting",
        "model",
        *names,
        "seed",
        *columns,
        "fwt",
        "seconds",
        "peak_memory_bytes",
        "folder",
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for setting in study.settings:
        for run in setting.runs:
            told = [setting.config.get(name) for name in names]
            measured = [run[view].get(metric) for view in VIEW_NAMES for metric in METRICS]
            cost = [run["seconds"]["total"], run.get("peak_memory_bytes"), run["path"]]
            writer.writerow(
                [
                    setting.dataset,
                    setting.scenario,
                    setting.label,
                    setting.config["model"],
                    *told,
                    run["seed"],
                    *measured,
                    run.get("fwt"),
                    *cost,
                ]
            )
    return file.getvalue()


def shown(values: list[float] | None, scale: float = 100, digits: int = 2) -> str:
    """`86.40 ± 0.52`, or `–` where a run has no such number."""
    if values is None or None in values:
        return MISSING
    seeds = mean_std_ci(scale * np.array(values))
    return f"{seeds.mean:.{digits}f}" + (f" ± {seeds.std:.{digits}f}" if seeds.n > 1 else "")


def view_name(settings: list[Setting], view: str) -> str:
    """What a view of a benchmark's settings is called."""
    return "domain-IL" if settings[0].scenario == "domain-il" else VIEW_NAMES[view]


def _test(runs: list[tuple[dict, dict]], view: str) -> Paired:
    """Of the average accuracies of pairs of runs."""
    return paired(*([run[view]["average_accuracy"] for run in own] for own in zip(*runs, strict=True)))


def _order(p: float) -> float:
    return math.inf if math.isnan(p) else p


def _number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.2f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return MISSING
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
