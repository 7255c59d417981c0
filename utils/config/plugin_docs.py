"""Catalogue: what the plugins are, read from their sources; nothing is imported, so it is quick.

A plugin's docstring has a first line, a "Source: ..." paragraph (paper, equations) and, where there are
any, "Differs from the paper: ..." and further paragraphs.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engram.utils.config import outside, registry

KINDS = {"models": "methods", "datasets": "benchmarks", "backbones": "backbones"}
SCENARIOS = ("class-il", "task-il", "domain-il")  # of Method; a method's own attribute replaces them
DIFFERS = re.compile(r"differs? from the papers?: *", re.IGNORECASE)


@dataclass(frozen=True)
class Plugin:
    """One method, benchmark or backbone."""

    kind: str
    name: str
    path: Path
    summary: str
    source: str  # the paper
    differs: str
    text: str  # what else the docstring says
    scenarios: tuple[str, ...]
    attributes: dict[str, Any]


def plugins(kind: str) -> list[Plugin]:
    """All plugins of a kind, by name."""
    return [_plugin(kind, name, path) for name, path in registry.names(kind).items()]


def library_plugin() -> Plugin:
    """The backbones that libraries name, `torchvision:NAME` and `timm:NAME`, as one plugin."""
    name = f"{registry.LIBRARIES[-1]}:NAME"
    return _plugin("backbones", name, registry.ROOT / "backbones" / "from_library.py")


def listing() -> str:
    """For --list: every plugin with its first line, paper and scenarios."""
    parts = []
    for kind, title in KINDS.items():
        parts.append(f"{title}:")
        for plugin in plugins(kind):
            about = [plugin.summary, paper(plugin.source), ", ".join(plugin.scenarios)]
            parts.append(f"  {plugin.name}\n" + "\n".join(f"      {line}" for line in about if line))
        if kind == "backbones":
            parts += [
                f"  {name}:NAME\n      {registry.LIBRARY_LINE.format(name)}" for name in registry.LIBRARIES
            ]
        for name, entry in outside.installed(kind).items():
            parts.append(f"  {name}\n      {entry.value}, of the package {entry.dist and entry.dist.name}")
        parts.append("")
    return "\n".join(parts).rstrip()


def paper(source: str) -> str:
    """The first sentence of a source: authors, year and title.

    A semicolon inside parentheses does not end it, nor does the full stop of "et al." and "e.g.".
    """
    ends = r"(?<=\))[,;.:]|;(?![^()]*\))|(?<! al)(?<!e\.g)\. "
    return re.split(ends, " ".join(source.split()), maxsplit=1)[0].rstrip(".")


def _plugin(kind: str, name: str, path: Path) -> Plugin:
    tree = _tree(path)
    summary, _, rest = (ast.get_docstring(tree) or "").partition("\n")
    sections = split(rest)
    attributes = _attributes(tree) if kind == "models" else {}
    scenarios = attributes.get("scenarios", SCENARIOS) if kind == "models" else _built(tree)
    scenarios = tuple(scenarios) if kind != "backbones" else ()
    return Plugin(kind, name, path, summary.strip(), *sections, scenarios, attributes)


def split(text: str) -> tuple[str, str, str]:
    """(source, differences, the rest) of a docstring below its first line."""
    sections: dict[str, list[str]] = {"source": [], "differs": [], "text": []}
    for paragraph in text.strip().split("\n\n"):
        section = "text"
        for line in paragraph.splitlines():
            if line.startswith(("Source: ", "Data: ")):
                section, line = "source", line.partition(": ")[2]
            elif DIFFERS.match(line):
                section, line = "differs", DIFFERS.sub("", line)
            sections[section].append(line)
        sections[section].append("")
    return tuple("\n".join(lines).strip() for lines in sections.values())


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def method_class(tree: ast.Module) -> ast.ClassDef:
    """The method of a plugin; the classes before it are its flags and its helpers."""
    return [node for node in tree.body if isinstance(node, ast.ClassDef)][-1]


def _attributes(tree: ast.Module, name: str = "") -> dict[str, Any]:
    """Literal class attributes of the method's class, or of the class `name`: its own and inherited ones."""
    attributes: dict[str, Any] = {}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    method = classes[name] if name else method_class(tree)
    for base in method.bases:
        *module, parent = ast.unparse(base).split(".")  # er.ER of `from engram.models import er`, or ER
        source = _source(tree, module[0] if module else parent)
        if source:
            attributes |= _attributes(_tree(source), parent)
    for line in method.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            try:
                attributes[line.targets[0].id] = ast.literal_eval(line.value)
            except ValueError:
                continue
    return attributes


def _source(tree: ast.Module, name: str) -> Path | None:
    """The file of models/ that a module, or the class in it, is imported from; None for `Method` itself."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            module = f"{node.module}.{name}" if node.module == "engram.models" else str(node.module)
            path = registry.ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
            return path if module != "engram.models.method" and path.is_file() else None
    return None


def _built(tree: ast.Module) -> tuple[str, ...]:
    """The scenarios of a benchmark: by the function that builds its stream, else by its docstring."""
    called = {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    if "domain_incremental" in called:
        return ("domain-il",)
    if "class_incremental" in called:
        return ("class-il", "task-il")
    said = re.search("class-IL|domain-IL", ast.get_docstring(tree) or "")
    return (said[0].lower(),) if said else ()
