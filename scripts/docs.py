"""Reference pages from the sources: one HTML page for every method, benchmark and backbone, and an index.

    python scripts/docs.py                   into runs/docs/; open runs/docs/index.html, no server is needed
    python scripts/docs.py --out /tmp/docs

A page holds what the plugin's file says (paper, formula, differences), its flags with defaults, bounds and
help from its dataclass, its presets, the published numbers it is compared with, and the tests that check it.
"""

import argparse
import ast
import dataclasses
import html
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from engram.scripts.analysis.table import MISSING, Table
from engram.utils.config import registry
from engram.utils.config.config import GROUPS
from engram.utils.config.options import BOUNDS, OptionSet, value_type
from engram.utils.config.plugin_docs import KINDS, Plugin, method_class, plugins
from engram.utils.errors import UserError

HOOKS = (
    "begin_task", "loss", "penalty", "edit_gradients", "after_step", "end_task", "predict", "observe",
)  # fmt: skip
PUBLISHED = "scripts/analysis/papers/published_*.yaml"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } th, td { padding: .25em .8em; border-bottom: 1px solid #e4e4e4; }
th { text-align: left; } pre { background: #f6f6f6; padding: .7em; overflow-x: auto; }
"""


def table_html(table: Table) -> str:
    """The table as HTML, its cells escaped."""
    lines = [("th", table.head), *(("td", row) for row in table.rows)]
    rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in lines]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def flag_table(options: type[OptionSet]) -> Table:
    """Flag, default, type with bounds, help."""
    rows = []
    for field in dataclasses.fields(options):
        kind, many = value_type(field)
        bounds = [f"{BOUNDS[name][0]} {value}" for name, value in field.metadata["bounds"].items()]
        named = " | ".join(map(str, field.metadata["choices"] or ())) or kind.__name__ + ",..." * many
        text = field.metadata["help"].replace("%%", "%")
        rows.append([f"--{field.name}", _shown(field.default), " ".join([named, *bounds]), text])
    return Table("flags", ["flag", "default", "values", "meaning"], rows, n_text=4)


def page(plugin: Plugin) -> str:
    """Everything about one plugin."""
    parts = [f"<h1>{html.escape(plugin.name)}</h1>", _paragraphs(plugin.summary)]
    for title, text in (("Source", plugin.source), ("Differs from the paper", plugin.differs)):
        if text:
            parts += [f"<h3>{title}</h3>", _paragraphs(text)]
    parts.append(_paragraphs(plugin.text))
    if plugin.scenarios:
        parts += ["<h3>Scenarios</h3>", _paragraphs(", ".join(plugin.scenarios))]
    if plugin.kind == "models":
        parts += _formulas(plugin)
    module = registry.load(plugin.kind, plugin.name)
    options = getattr(module, "Options", OptionSet)
    if dataclasses.fields(options):
        parts += ["<h3>Flags</h3>", table_html(flag_table(options))]
    if plugin.kind == "datasets":
        parts += ["<h3>Sets by default</h3>", _pairs(module.DEFAULTS)]
    parts += [*_presets(plugin), *_published(plugin), *_checks(plugin)]
    path = plugin.path.relative_to(registry.ROOT)
    parts += ["<h3>File</h3>", f"<p><code>{path}</code></p>", '<p><a href="index.html">all pages</a></p>']
    return document(plugin.name, "\n".join(parts))


def _formulas(plugin: Plugin) -> list[str]:
    """The docstrings of the method's class and of the hooks that it overrides."""
    own = method_class(ast.parse(plugin.path.read_text(encoding="utf-8")))
    rows = [[own.name, ast.get_docstring(own) or ""]]
    for node in own.body:
        if isinstance(node, ast.FunctionDef) and node.name in HOOKS:
            rows.append([node.name, " ".join((ast.get_docstring(node) or "").split())])
    table = Table("what it does", ["hook", "what it does"], rows, n_text=2)
    return ["<h3>Formula, hook by hook</h3>", table_html(table)]


def _presets(plugin: Plugin) -> list[str]:
    path = registry.ROOT / "models" / "presets" / f"{plugin.name}.yaml"
    if plugin.kind != "models" or not path.exists():
        return []
    return [
        "<h3>Presets (--load_best_args)</h3>",
        f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>",
    ]


def _published(plugin: Plugin) -> list[str]:
    """Numbers of papers that a report is compared with."""
    rows = []
    for path in sorted(registry.ROOT.glob(PUBLISHED)):
        for benchmark, known in yaml.safe_load(path.read_text(encoding="utf-8"))["values"].items():
            for name, values in (known if isinstance(known, dict) else {}).items():
                if re.split(r"\W", str(name))[0] == plugin.name and isinstance(values, list):
                    rows.append([str(benchmark), str(name), ", ".join(map(_shown, values))])
    table = Table("", ["benchmark", "setting", "values (%)"], rows, n_text=3)
    return ["<h3>Published numbers</h3>", table_html(table)] if rows else []


def _checks(plugin: Plugin) -> list[str]:
    """Reference tests whose file names this plugin."""
    rows = []
    for path in sorted((registry.ROOT / "tests" / "reference").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(rf"(models\.|[\"']){plugin.path.stem}\b", text) or plugin.kind != "models":
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                rows.append([path.name, node.name.removeprefix("test_").replace("_", " ")])
    table = Table("", ["file", "what is checked"], rows, n_text=2)
    return ["<h3>Checked by</h3>", table_html(table)] if rows else []


def index() -> str:
    """Links to all pages, and the flags that every run has."""
    parts = ["<h1>Engram: reference</h1>"]
    for kind, title in KINDS.items():
        items = "".join(
            f'<tr><td><a href="{p.name}.html">{p.name}</a></td><td>{html.escape(p.summary)}</td></tr>'
            for p in plugins(kind)
        )
        parts.append(f"<h2>{title}</h2><table>{items}</table>")
    parts.append("<h2>flags of every run</h2>")
    for options in GROUPS.values():
        parts += [f"<h3>{html.escape(options.__doc__)}</h3>", table_html(flag_table(options))]
    return document("Engram: reference", "\n".join(parts))


def document(title: str, body: str) -> str:
    """A whole HTML page."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head><body>\n{body}\n</body></html>\n"


def _paragraphs(text: str) -> str:
    """Paragraphs; indented or bulleted ones keep their lines."""
    parts = []
    for part in filter(None, text.split("\n\n")):
        kept = part.lstrip("\n").startswith((" ", "- "))
        parts.append(f"<pre>{html.escape(part)}</pre>" if kept else f"<p>{html.escape(part)}</p>")
    return "\n".join(parts)


def _pairs(flags: dict[str, Any]) -> str:
    table = Table("", ["flag", "value"], [[f"--{k}", _shown(v)] for k, v in flags.items()], n_text=2)
    return table_html(table)


def _shown(value: Any) -> str:
    if value is None or value == ():
        return MISSING
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Write all pages; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=registry.ROOT / "runs" / "docs", metavar="DIR")
    out = parser.parse_args(argv).out
    found = [plugin for kind in KINDS for plugin in plugins(kind)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for plugin in found:
            (out / f"{plugin.name}.html").write_text(page(plugin), encoding="utf-8")
        (out / "index.html").write_text(index(), encoding="utf-8")
    except (OSError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(found)} pages: {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
