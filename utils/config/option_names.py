"""The flags of a plugin by name, read from its source: a wrong flag is told before torch is imported."""

import ast
import dataclasses
from functools import cache
from pathlib import Path

from engram.utils.config import registry
from engram.utils.config.registry import ROOT

N_NAMED = 4  # plugins that an error names


def of_plugin(kind: str, name: str) -> frozenset[str]:
    """Names of the fields of the plugin's `Options`, its base classes' among them; empty without any.

    A plugin from outside is imported: its base classes may be anywhere.
    """
    name = registry.canonical(kind, name)
    if name in registry.names(kind):
        return _fields(registry.names(kind)[name], "Options")
    options = getattr(registry.load(kind, name), "Options", None)
    return frozenset(field.name for field in dataclasses.fields(options)) if options else frozenset()


def owners(flag: str) -> str:
    """`; it is a flag of the methods er, gss and 30 others`, or "" if no plugin has the flag."""
    phrases = []
    for kind, word in registry.WORDS.items():
        names = [name for name in registry.names(kind) if flag in of_plugin(kind, name)]
        if kind == "backbones" and flag in _fields(ROOT / kind / "from_library.py", "Options"):
            names += [f"{library}:NAME" for library in registry.LIBRARIES]
        if names:
            more = f" and {len(names) - N_NAMED} others" if len(names) > N_NAMED else ""
            phrases.append(f"the {word}s {', '.join(names[:N_NAMED])}{more}")
    return f"; it is a flag of {' and of '.join(phrases)}" if phrases else ""


@cache
def _fields(path: Path, class_name: str) -> frozenset[str]:
    tree = registry.tree(path)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    imported = _imported(tree)
    if node is None:
        return _fields(*imported[class_name]) if class_name in imported else frozenset()
    names = {name for base in node.bases for name in _base_fields(base, path, imported)}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            # a ClassVar takes the place of a base class's field of this name
            change = names.discard if "ClassVar" in ast.unparse(line.annotation) else names.add
            change(line.target.id)
    return frozenset(names)


def _base_fields(base: ast.expr, path: Path, imported: dict[str, tuple[Path, str]]) -> frozenset[str]:
    """Fields of a base class written as `Name` or `module.Name`."""
    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
        module, _ = imported[base.value.id]
        return _fields(module, base.attr)
    if isinstance(base, ast.Name):
        return _fields(*imported.get(base.id, (path, base.id)))
    return frozenset()


def _imported(tree: ast.Module) -> dict[str, tuple[Path, str]]:
    """Local name → (file, name in it) of what a file takes from other files of the project."""
    names = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engram"):
            folder = ROOT.joinpath(*str(node.module).split(".")[1:])
            for alias in node.names:
                as_module = folder / f"{alias.name}.py"
                path = as_module if as_module.exists() else folder.with_suffix(".py")
                names[alias.asname or alias.name] = (path, alias.name)
    return names
