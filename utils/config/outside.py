"""Plugins from outside: a method, benchmark or backbone in a file or package that is not the project's.

Three ways of naming one, each valid for --model, --dataset and --backbone:

    --model my_method.py            a file; recorded as its absolute path
    --model my_package.my_method    a module; recorded so if it is installed, else as the path of its file
    --model my_name                 an entry point of an installed package, in the group `engram.models`,
                                    `engram.datasets` or `engram.backbones`; recorded by its name

What is recorded is all that is needed to find the plugin again.

A plugin imports the files beside it as a script of its own would: its folder (the one that holds its package,
if it has one) joins the module search path, `sys.path`. An import finder for this folder alone would be as
global, since a finder does not learn who imports, and processes that a plugin spawns inherit `sys.path` but
no finder. Installed packages come before the folder, so it hides nothing; where something hides a file of the
folder that the plugin imports, the plugin is refused.
"""

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import engram
from engram.utils.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
MARK = "__engram_plugin__"  # a global of a plugin's module: the checksum of the source that was executed
# What a module must define besides a class, which is checked where it is used.
MUST_DEFINE = {"models": (), "datasets": ("DEFAULTS", "build"), "backbones": ("build",)}


@dataclass(frozen=True)
class OutsidePlugin:
    """A plugin that is not the project's: how it is recorded, its file, its module if a package holds it."""

    recorded: str
    path: Path
    module: str | None = None
    root: Path | None = None  # the folder that its imports begin in; None: they work already

    @property
    def source(self) -> bytes:
        """The content of its file."""
        return self.path.read_bytes()


def find(kind: str, given: str) -> OutsidePlugin | None:
    """The plugin that a name stands for; None if it looks like no file, no module and no entry point.

    Raises `UserError` for a file or module that is not there.
    """
    if given.endswith(".py") or "/" in given or ("." in given and Path(given).is_file()):
        return _of_file(Path(given))
    if MODULE.fullmatch(given):
        return _of_module(given)
    entry = installed(kind).get(given)
    return _of_entry_point(entry) if entry else None


def installed(kind: str) -> dict[str, "EntryPoint"]:
    """Name → entry point of the packages that are installed."""
    from importlib.metadata import entry_points  # 30 ms, which --help need not wait for

    return {entry.name: entry for entry in sorted(entry_points(group=f"engram.{kind}"))}


def label(recorded: str) -> str:
    """The name to show and to call folders by: `my_method` for /home/me/my_method.py."""
    return re.sub(r"[^\w.-]+", "_", Path(recorded).stem) if "/" in recorded else recorded


def load(kind: str, plugin: OutsidePlugin) -> ModuleType:
    """Import the plugin, anew if its file has changed; an error in it is a `UserError` with its line."""
    if plugin.root:
        _make_importable(plugin.root)
        _refuse_hidden_neighbours(plugin, plugin.root)
    checksum = hashlib.sha256(plugin.source).hexdigest()
    name = plugin.module or f"engram_plugin_{hashlib.sha256(str(plugin.path).encode()).hexdigest()[:12]}"
    module = sys.modules.get(name)
    if module is None or vars(module).get(MARK) != checksum:
        try:
            module = _executed(name, plugin, module)
        except Exception as error:
            raise UserError(f"{label(plugin.recorded)} cannot be imported: {_where(error, plugin)}") from None
        setattr(module, MARK, checksum)
    missing = [word for word in MUST_DEFINE[kind] if not hasattr(module, word)]
    if missing:
        raise UserError(f"{plugin.path}: does not define {' and '.join(missing)} (see CONTRIBUTING.md)")
    return module


def _make_importable(folder: Path) -> None:
    """Put the folder behind installed packages, and before the project's own, which engram.py keeps last.

    Nobody imports the project's `utils` or `datasets` by these names, but a plugin may have files called so.
    """
    project = str(Path(engram.__file__).resolve().parent)
    if str(folder) not in sys.path:
        at = sys.path.index(project) if project in sys.path else len(sys.path)
        sys.path[at:at] = [str(folder)]


def _refuse_hidden_neighbours(plugin: OutsidePlugin, folder: Path) -> None:
    """Raise `UserError` where the plugin imports a name of its folder and would get another file."""
    for name in sorted(_imported_names(plugin.source)):
        candidates = (folder / f"{name}.py", folder / name / "__init__.py")
        neighbour = next(filter(Path.is_file, candidates), None)
        spec = importlib.util.find_spec(name) if neighbour else None
        if neighbour and spec and Path(spec.origin or "").resolve() != neighbour.resolve():
            raise UserError(
                f"{plugin.path} imports {name}, which Python finds in {spec.origin} before {neighbour}: "
                "rename that file"
            )


def _imported_names(source: bytes) -> set[str]:
    """The first parts of the module names that the source imports; none of one with a syntax error."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # told with its line when it is executed
        return set()
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[0] for module in modules if module}


def line_at_fault(error: BaseException) -> str | None:
    """`FILE, line 12, in loss: code`, the last line of a plugin from outside that an error went through."""
    frames = [
        frame
        for (raw, _), frame in zip(
            traceback.walk_tb(error.__traceback__), traceback.extract_tb(error.__traceback__), strict=True
        )
        if MARK in raw.f_globals
    ]
    if not frames:
        return None
    return f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}: {frames[-1].line}"


def _of_file(given: Path) -> OutsidePlugin:
    path = given.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{given}: there is no such file")
    if path.suffix != ".py":
        raise UserError(f"{given}: expected a Python file, such as my_method.py")
    parts = [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if len(parts) > 1 and root == Path(engram.__path__[0]).resolve():  # `datasets` may be another package
        return OutsidePlugin(str(path), path, ".".join(["engram", *parts]))
    return OutsidePlugin(str(path), path, ".".join(parts) if len(parts) > 1 else None, root)


def _of_module(given: str) -> OutsidePlugin:
    """A module below the current folder, as `python -m` would find it, or one that is installed."""
    below_here = Path(*given.split(".")).with_suffix(".py")
    if below_here.is_file():
        return _of_file(below_here)
    try:
        spec = importlib.util.find_spec(given)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:  # the package's own __init__.py
        raise UserError(f"{given} cannot be imported: {type(error).__name__}: {error}") from error
    if spec and spec.origin and Path(spec.origin).is_file():
        return OutsidePlugin(given, Path(spec.origin), given)
    raise UserError(f"{given}: no module of that name is installed, and {below_here} is not there")


def _of_entry_point(entry: "EntryPoint") -> OutsidePlugin:
    try:
        spec = importlib.util.find_spec(entry.module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{entry.name}: a package announces {entry.module}, which is not installed")
    return OutsidePlugin(entry.name, Path(spec.origin), entry.module)


def _executed(name: str, plugin: OutsidePlugin, before: ModuleType | None) -> ModuleType:
    """The plugin's module, executed; `before` is the one of an older content of its file."""
    importlib.invalidate_caches()
    if plugin.module:
        module = importlib.reload(before) if before else importlib.import_module(name)
        if Path(str(module.__file__)).resolve() != plugin.path.resolve():
            raise ImportError(f"another module {name} is imported already, {module.__file__}")
        return module
    spec = importlib.util.spec_from_file_location(name, plugin.path)
    assert spec and spec.loader, "a file of Python"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it there
    try:
        # not exec_module: a byte code file of the same second and size would hide a change
        exec(compile(plugin.source, str(plugin.path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: Exception, plugin: OutsidePlugin) -> str:
    """`NameError: ... (FILE, line 3: code)`, the last line of the plugin's file in its traceback."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError) and error.filename:
        return (
            f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno}: {(error.text or '').strip()})"
        )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == plugin.path]
    return f"{text} ({plugin.path}, line {frames[-1].lineno}: {frames[-1].line})" if frames else text
