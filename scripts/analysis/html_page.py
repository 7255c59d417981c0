"""Page: a report as one HTML file that needs nothing else."""

import base64
import html

from engram.scripts.analysis import svg_figures, tables
from engram.scripts.analysis.captions import caption
from engram.scripts.analysis.run_set import Setting, Study, commits
from engram.utils.config.run_key import command_line_of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { margin-top: 2em; border-bottom: 2px solid #ddd; }
h3 { margin: 2em 0 .4em; font-size: 1.15em; } h4 { margin: 1.8em 0 .4em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92em; }
th, td { padding: .25em .8em; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th { border-bottom: 2px solid #999; text-align: left; } tbody tr:hover { background: #f4f7fa; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.note, .about { color: #555; font-size: .92em; } img { width: 100%; margin-top: 1.2em; }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto; font-size: .85em; }
summary { cursor: pointer; margin: .4em 0; } nav a { margin-right: 1.2em; }
"""
VIEWS = {
    "class_il": "class-IL (which of all classes seen?)",
    "task_il": "task-IL (which of the task's classes?)",
}


def render(title: str, study: Study, about: str, against: str | None) -> str:
    """The whole page."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="about">{html.escape(about)}</p>', _menu(study)]
    for name, settings in study.benchmarks.items():
        parts.append(f'<h2 id="{_anchor(name)}">{html.escape(name)}</h2>')
        parts.append(f'<p class="about">{html.escape(caption(settings))}</p>')
        for view in settings[0].views:
            parts += _view(settings, view, against)
        parts += _cost(settings)
    parts += ['<h2 id="failed">Runs that did not finish</h2>']
    parts.append(tables.failed_table(study).html() if study.unfinished else "<p>None.</p>")
    parts += ['<h2 id="commands">Commands and versions</h2>', *_commands(study)]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _menu(study: Study) -> str:
    names = [*study.benchmarks, "failed", "commands"]
    return "<nav>" + "".join(f'<a href="#{_anchor(n)}">{html.escape(n)}</a>' for n in names) + "</nav>"


def _anchor(name: str) -> str:
    return html.escape(name.replace(", ", "-"))


def _view(settings: list[Setting], view: str, against: str | None) -> list[str]:
    domain = settings[0].scenario == "domain-il"
    parts = [f"<h3>{'domain-IL' if domain else html.escape(VIEWS[view])}</h3>"]
    parts += [tables.metric_table(settings, view).html()]
    parts += [_image(svg_figures.over_tasks(settings, view), "accuracy and forgetting over tasks")]
    if view == settings[0].views[0] and (drawn := svg_figures.against_buffer(settings)):
        parts += ["<h4>Accuracy against buffer size</h4>", _image(drawn, "accuracy against buffer size")]
    if drawn := svg_figures.stability(settings, view):
        parts += ["<h4>Accuracy while training (stability gap)</h4>", _image(drawn, "stability gap")]
    compared = tables.paired_table(settings, view, against)
    if compared.note:
        parts += ["<h4>Differences in accuracy between settings</h4>", _folded(compared)]
    parts += [
        "<h4>Accuracy matrices, mean over seeds</h4>",
        _image(svg_figures.matrices(settings, view), "R"),
    ]
    return parts


def _folded(table: tables.Table, n_open: int = 12) -> str:
    """The first rows; a long rest behind a click."""
    if len(table.rows) <= n_open:
        return table.html()
    first = tables.Table(table.title, table.head, table.rows[:n_open], "", table.n_text)
    rest = tables.Table(table.title, table.head, table.rows[n_open:], table.note, table.n_text)
    n = len(rest.rows)
    return f"{first.html()}<details><summary>{n} more, less certain</summary>{rest.html()}</details>"


def _cost(settings: list[Setting]) -> list[str]:
    table = tables.cost_table(settings)
    return [
        "<h3>Time and memory of a run</h3>",
        table.html(),
        _image(svg_figures.cost(settings), "time and memory"),
    ]


def _commands(study: Study) -> list[str]:
    parts = []
    named = [(name, setting) for name, settings in study.benchmarks.items() for setting in settings]
    for benchmark, setting in named:
        lines = "\n".join(command_line_of(run["config"]) for run in setting.runs)
        name = f"{benchmark}: {setting.label}, seeds {', '.join(map(str, setting.seeds))}"
        body = f"<pre>{html.escape(lines)}</pre><p class='note'>commit {commits(setting.runs)}</p>"
        parts.append(f"<details><summary>{html.escape(name)}</summary>{body}</details>")
    found = sorted({", ".join(f"{k} {v}" for k, v in run["versions"].items()) for run in study.documents})
    return [*parts, *(f"<p>{html.escape(line)}</p>" for line in found)]


def _image(svg: str, text: str) -> str:
    """As an image of its own: the names inside one drawing must not meet another's."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/svg+xml;base64,{data}">'
