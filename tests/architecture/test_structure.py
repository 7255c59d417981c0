"""The house: imports point one way, files and functions stay short, rooms are the ones drawn."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# Room → rooms it may import from.
MAY_IMPORT = {
    "utils": {"utils"},
    "backbones": {"backbones", "utils"},
    "datasets": {"datasets", "utils"},
    "models": {"models", "datasets", "backbones", "utils"},
    "memorization": {"memorization", "utils", "backbones", "datasets"},
}
# The rooms inside utils/, each of which may import from itself and from those before it.
TOWER = ("config", "buffers", "metrics", "training", "tracking", "runs", "sweeps")
# What changes the module search path, and the only files that may: CONTRIBUTING.md says why.
EDIT = r"\bsys\.path(\.(?!index|count|copy)\w+\(|(\[[^]]*\])? *\+?=(?!=))"
EDIT_THE_PATH = {"engram.py", "utils/config/outside.py"}
# Optional packages (pyproject's extras) → the only files that may import them.
EXTRAS = {
    "ray": {"utils/sweeps/ray_pool.py"},
    "submitit": {"utils/sweeps/slurm_pool.py"},
    "timm": {"backbones/timm_library.py"},
    "safetensors": {"backbones/pretrained_weights.py"},
}
BY_NAME = {"psycopg", "mkdocs-material"}  # extras that nothing of ours imports
ROOMS = {*MAY_IMPORT, "scripts", "tests", "main", "engram"}
TOP_LEVEL = {
    "main.py", "engram.py", "backbones", "datasets", "models", "utils", "memorization", "scripts", "env.yml",
    "tests", "README.md", "RESULTS.md", "pyproject.toml", "Makefile", "CONTRIBUTING.md", "LICENSE", ".ci",
    ".gitignore", ".pre-commit-config.yaml", "notebooks",
}  # fmt: skip
SOURCES = sorted(p for room in MAY_IMPORT for p in (ROOT / room).rglob("*.py"))
SOURCES += [ROOT / "main.py", ROOT / "engram.py", *sorted((ROOT / "scripts").rglob("*.py"))]


@cache
def nodes(text: str) -> list[ast.AST]:
    """All nodes of a source's tree; each file is parsed once for all tests."""
    return list(ast.walk(ast.parse(text)))


@cache
def imports(text: str) -> set[str]:
    """Dotted names of everything a file imports, relative imports with their dots."""
    found = set()
    for node in nodes(text):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def imported_rooms(text: str) -> set[str]:
    """Rooms of the project that a file imports from."""
    return {name.split(".")[1] for name in imports(text) if name.startswith("engram.")}


@pytest.mark.parametrize("room", list(MAY_IMPORT))
def test_imports_point_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        wrong = imported_rooms(path.read_text()) - MAY_IMPORT[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_check_above_can_fail():
    assert imported_rooms("def f():\n    from engram.models import er\n") == {"models"}


@pytest.mark.parametrize(
    "path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_there_is_one_way_of_importing(path):
    """`from engram.room.module import name`: never a bare room, a relative import or an edited path."""
    text = path.read_text()
    wrong = {n for n in imports(text) if n.split(".")[0] in ROOMS - {"tests", "engram"} or n[0] == "."}
    assert not wrong, f"{path}: write `from engram.…` for {wrong}"
    if path.relative_to(ROOT).as_posix() not in EDIT_THE_PATH:
        assert not re.search(EDIT, text), f"{path} edits sys.path; install the project instead"


def test_an_edit_of_the_path_is_seen():
    edits = (".insert(0, x)", " += [x]", "[:0] = [x]", " = [x]")
    assert all(re.search(EDIT, f"sys.path{edit}") for edit in edits)
    assert not re.search(EDIT, "sys.path == before or [p for p in sys.path]")


def test_the_rooms_of_utils_are_a_tower():
    for i, room in enumerate(TOWER):
        for path in (ROOT / "utils" / room).rglob("*.py"):
            used = {n.split(".")[2] for n in imports(path.read_text()) if n.startswith("engram.utils.")}
            wrong = used & set(TOWER[i + 1 :])
            assert not wrong, f"{path.relative_to(ROOT)} imports from {wrong}, which stand above it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in nodes(text):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} in {path.name}"


def short_docstrings(text: str) -> list[str]:
    """Docstrings of a file that are no sentence: four words or fewer, those of a method's `Options` apart."""
    documented = [n for n in nodes(text) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [ast.get_docstring(n) or "" for n in documented if getattr(n, "name", "") != "Options"]
    return [text for text in docstrings if text and len(text.split()) <= 4]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_are_sentences_and_file_names_say_something(path):
    assert not short_docstrings(path.read_text()), "say what goes in and what comes out"
    assert path.stem not in {"misc", "helper", "helpers", "stuff", "various"}


def test_the_check_of_docstrings_can_fail():
    text = 'class Options:\n    """Flags of ER."""\n\ndef f():\n    """Of its runs."""\n'
    assert short_docstrings(text) == ["Of its runs."]


def test_nothing_else_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert top <= TOP_LEVEL, top - TOP_LEVEL


def test_env_yml_installs_what_pyproject_lists():
    env = yaml.safe_load((ROOT / "env.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert env["name"] == "engram" == project["project"]["name"]
    pip = next(item["pip"] for item in env["dependencies"] if isinstance(item, dict))
    assert pip == ["-e .[dev]"], "conda installs the list in pyproject.toml and nothing of its own"
    assert "dev" in project["project"]["optional-dependencies"]
    assert "python" + project["project"]["requires-python"] in env["dependencies"]


def test_every_folder_of_modules_is_installed():
    """A room that pyproject.toml forgets would be missing from `pip install .` alone."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in SOURCES} - {ROOT}
    assert set(listed) == {"engram." + ".".join(f.relative_to(ROOT).parts) for f in folders}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_third_party_imports_are_declared():
    """Every package imported by the sources is a dependency; nothing undeclared, nothing unused."""
    names = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
    names |= {"sqlalchemy": "mlflow", "alembic": "mlflow"}  # come with it; its own errors are theirs
    names |= {"markupsafe": "jinja2"}  # comes with it and holds its escaping
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {d.split(">")[0].split("=")[0].strip() for d in project["dependencies"]}
    imported, dev = set(), {re.split(r"[\[><=]", d)[0] for d in project["optional-dependencies"]["dev"]}
    for path in SOURCES:
        packages = {name.split(".")[0] for name in imports(path.read_text())}
        for_developers = path.is_relative_to(ROOT / "scripts" / "dev") or path.name == "check_plugin.py"
        imported |= packages - dev if for_developers else packages
    third_party = {names.get(n, n) for n in imported - ROOMS - set(sys.stdlib_module_names)}
    third_party -= set(EXTRAS)
    assert third_party <= declared, f"imported but not declared: {third_party - declared}"
    assert declared <= third_party, f"declared but never imported: {declared - third_party}"


def test_optional_packages_are_extras_imported_where_they_are_used():
    """At the time of use, too: a missing one touches nothing else."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = {name: group for name, group in extras.items() if name != "dev" and not name.startswith("test-")}
    listed = {re.split(r"[\[><=]", d)[0] for group in used.values() for d in group}
    assert listed == set(EXTRAS) | BY_NAME
    for path in SOURCES:
        module, *others = nodes(path.read_text())
        for node in others:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in set(EXTRAS) & {name.split(".")[0] for name in names}:
                assert str(path.relative_to(ROOT)) in EXTRAS[name], f"{path} imports {name}"
                assert node not in module.body, f"{path} imports {name} before it is needed"


COMPAT = ROOT / "utils" / "compat.py"
PUBLIC_IN_SPITE_OF_THE_NAME = {"_fields", "_asdict", "_replace", "_make", "_exit"}  # namedtuples; os._exit
UNDOCUMENTED_MODULES = ("mlflow.store", "mlflow.utils", "mlflow.protos")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_defined_in(text: str) -> set[str]:
    """Functions, classes, attributes and variables with a leading underscore."""
    names = set()
    for node in nodes(text):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def foreign_private_names(text: str, ours: set[str]) -> set[str]:
    """What a file uses of another package's private interface."""
    used = {node.attr for node in nodes(text) if isinstance(node, ast.Attribute)}
    names = {name for name in used if is_private(name)} - ours - PUBLIC_IN_SPITE_OF_THE_NAME
    names |= used & {"MAX_RETRY_COUNT", "unwrap", "hooked"}
    for name in imports(text):
        if name.startswith(UNDOCUMENTED_MODULES) or any(map(is_private, name.split("."))):
            names |= {name} if not name.startswith("engram.") else set()
    return names


def test_private_interfaces_of_other_packages_stand_in_one_file():
    """utils/compat.py, where each has the version it was checked with and a test."""
    texts = {path: path.read_text() for path in SOURCES if path != COMPAT}
    ours = set().union(*map(private_names_defined_in, texts.values()))
    for path, text in texts.items():
        wrong = foreign_private_names(text, ours)
        assert not wrong, f"{path.relative_to(ROOT)} uses {wrong}; put it into utils/compat.py, with a test"


@pytest.mark.parametrize(
    "line",
    ["import torch; torch._dynamo.reset()", "parser._actions", "from mlflow.store.db import utils",
     "from torch import _foreach_add_", "import inspect; inspect.unwrap(f)"],
)  # fmt: skip
def test_the_check_of_private_interfaces_can_fail(line):
    assert foreign_private_names(line, ours={"_begin"})
    assert not foreign_private_names("trainer._begin(); sample._asdict()", ours={"_begin"})
