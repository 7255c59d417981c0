"""Registry: plugins are files, found by name and imported only when asked for.

`models/er.py` is the method `er`; `datasets/seq_mnist.py` the benchmark `seq-mnist`. Dashes and
underscores are the same. A file that holds a family lists its members in a literal `NAMES`
(`backbones/resnet.py`: resnet18, resnet34, resnet50). Listing reads the source without importing it.
A file, a module or an entry point of another package is a plugin, too (`outside.py`).
"""

import ast
import difflib
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import engram
from engram.utils.config import mammoth, outside
from engram.utils.errors import UserError

Plugin = TypeVar("Plugin")

ROOT = Path(__file__).resolve().parents[2]  # the folder of models/, datasets/, ...

# Files in a plugin folder that are not plugins: the contract and what plugins share.
CONTRACTS = {
    "models": {"build", "method", "rehearsal"},
    "datasets": {
        "array_layout", "array_values", "arrays", "augment", "benchmark", "encoding", "folder_scan",
        "given_tasks", "image_decoding", "image_files", "images", "lazy_images", "named_images", "resampling",
        "rotation", "scenarios", "shards", "sample_lists", "sources", "storage", "streams",
        "training_samples", "unlabeled", "user_images",
    },
    "backbones": {
        "backbone", "batch_norm", "compiled", "direct_layers", "from_library", "heads", "petl",
        "pretrained_weights", "row_parallel", "timm_library", "torchvision_library", "tuning", "vit",
        "wrapped_network",
    },
}  # fmt: skip
LIBRARIES = ("timm", "torchvision")  # `--backbone timm:NAME`, see backbones/from_library.py
LIBRARY_LINE = "A network of {} by its name there; --pretrained loads its weights or a file's."
# General flags that a method may choose by a class attribute of that name, and what others have.
CHOSEN_BY_METHODS: dict[str, Any] = {"train_classes": "all", "encoder_lr_scale": 1.0}
WORDS = {"models": "method", "datasets": "benchmark", "backbones": "backbone"}


class UnknownPluginError(UserError):
    """No plugin of that name; the message lists near matches and all names."""


def suggest(given: str, valid: list[str]) -> str:
    """`; did you mean X?` for a near match, else an empty string."""
    near = difflib.get_close_matches(given, valid, n=2, cutoff=0.55)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def checkout() -> Path:
    """The project's folder, for programs that change its files; `UserError` for an installed copy."""
    if engram.is_installed:
        raise UserError("this changes files of the project, and this copy is installed; clone the repository")
    return ROOT


def default_dir() -> Path:
    """Where programs write by default: the project's folder, the current one for an installed copy."""
    return Path.cwd() if engram.is_installed else ROOT


def command() -> str:
    """How a person starts this program: `python main.py` in the project's folder, `engram` when installed."""
    return "engram" if engram.is_installed else "python main.py"


@cache
def names(kind: str) -> dict[str, Path]:
    """Plugin name → file, for `kind` in models, datasets, backbones, sorted by name."""
    paths: dict[str, Path] = {}
    for path in sorted((ROOT / kind).glob("*.py")):
        if path.stem in CONTRACTS[kind] | {"__init__"}:
            continue
        for name in _literal_names(path) or (path.stem,):
            name = name.replace("_", "-") if kind == "datasets" else name
            if name in paths:
                raise RuntimeError(f"{WORDS[kind]} '{name}' is defined by both {paths[name]} and {path}")
            paths[name] = path
    return paths


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a source file of the project."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _literal_names(path: Path) -> tuple[str, ...]:
    return _assigned(path, "NAMES") or ()


def _assigned(path: Path, variable: str) -> Any:
    """The literal that a file assigns to a variable, None without one."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable:
            return ast.literal_eval(node.value)
    return None


def default_backbone(dataset: str) -> str:
    """The backbone that a benchmark sets, read from its source if it is the project's."""
    name = canonical("datasets", dataset)
    ours = names("datasets")
    defaults = _assigned(ours[name], "DEFAULTS") if name in ours else load("datasets", name).DEFAULTS
    return str(defaults.get("backbone", "mlp"))


def summaries(kind: str) -> dict[str, str]:
    """Plugin name → first line of its docstring, without importing anything."""
    docs = {name: ast.get_docstring(tree(path)) or "" for name, path in names(kind).items()}
    if kind == "backbones":
        docs |= {f"{name}:NAME": LIBRARY_LINE.format(name) for name in LIBRARIES}
    return {name: doc.split("\n", 1)[0] for name, doc in docs.items()}


def docstring(kind: str, name: str) -> str:
    """What a plugin's file says of it on top, without importing it; empty for one from outside."""
    path = names(kind).get(canonical(kind, name))
    return (ast.get_docstring(tree(path)) or "") if path else ""


def canonical(kind: str, given: object) -> str:
    """The recorded spelling of a name: one of `names`, or how a plugin from outside is found again.

    Raises `UnknownPluginError` for any other; a stored one may be null or a number.
    """
    if not isinstance(given, str):
        raise UnknownPluginError(
            f"the {WORDS[kind]} is {given!r}: expected a name, such as {min(names(kind))}"
        )
    if kind == "backbones" and given.strip().partition(":")[0] in LIBRARIES:
        return _of_library(given.strip())
    wanted = given.strip().lower().replace("-", "_")
    for name in names(kind):
        if name.replace("-", "_") == wanted:
            return name
    plugin = _outside(kind, given.strip())
    if plugin is None:
        valid = [*names(kind), *outside.installed(kind)]
        hint = (mammoth.method_answer(given) if kind == "models" else "") or suggest(given, valid)
        raise UnknownPluginError(
            f"unknown {WORDS[kind]} '{given}'{hint} (valid: {', '.join(valid)}; or a file of your own, "
            f"such as my_{WORDS[kind]}.py)"
        )
    return _recorded(kind, plugin)


def _of_library(given: str) -> str:
    """The recorded spelling of LIBRARY:NAME; whether the library has it is known when it is built."""
    library, _, name = given.partition(":")
    if not re.fullmatch(r"[\w.-]+", name):
        raise UnknownPluginError(
            f"the backbone is {given!r}: expected {library}:NAME, such as {library}:resnet18"
        )
    return given


def _outside(kind: str, given: str) -> outside.OutsidePlugin | None:
    """The plugin from outside that a name stands for, None without one."""
    try:
        return outside.find(kind, given)
    except UserError as error:
        raise UnknownPluginError(f"unknown {WORDS[kind]} {error}") from None


def _recorded(kind: str, plugin: outside.OutsidePlugin) -> str:
    """How it is recorded; a name that would be taken for one of the project's is refused."""
    name = outside.label(plugin.recorded)
    ours = {ours.replace("-", "_"): ours for ours in names(kind)}.get(name.lower().replace("-", "_"))
    if ours is None:
        return plugin.recorded
    if plugin.path == names(kind)[ours]:  # `--model models/er.py`
        return ours
    raise UserError(
        f"{plugin.path}: there is a {WORDS[kind]} {ours} already, and tables would mix them; rename the file"
    )


def load(kind: str, name: str) -> ModuleType:
    """Import one plugin module; a missing optional dependency is reported for this plugin alone."""
    name = canonical(kind, name)
    if kind == "backbones" and ":" in name:
        return importlib.import_module("engram.backbones.from_library")
    if name not in names(kind):
        plugin = _outside(kind, name)
        assert plugin is not None, "it has just been found"
        return outside.load(kind, plugin)
    try:
        return importlib.import_module(f"engram.{kind}.{names(kind)[name].stem}")
    except ModuleNotFoundError as error:
        raise UnknownPluginError(
            f"{WORDS[kind]} '{name}' needs the package '{error.name}', which is not installed: "
            f"pip install {error.name}"
        ) from error


def method_defaults(name: object) -> dict[str, Any]:
    """The general flags that a method chooses for itself, as its paper trains; empty for most.

    They are the class attributes `train_classes` and `encoder_lr_scale` of the module's class; a flag that is
    given wins over them.
    """
    module = load("models", name)  # type: ignore[arg-type]  # `canonical` refuses what is no name
    classes = (c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__)
    method = next((c for c in classes if hasattr(c, "train_classes")), None)
    chosen = {flag: getattr(method, flag, usual) for flag, usual in CHOSEN_BY_METHODS.items()}
    return {flag: value for flag, value in chosen.items() if value != CHOSEN_BY_METHODS[flag]}


def source_from_outside(kind: str, name: str) -> bytes | None:
    """The content of the file of a plugin from outside, None for one of the project's."""
    if name in names(kind):
        return None
    plugin = _outside(kind, name)
    return plugin.source if plugin else None


def plugin_class(module: ModuleType, base: type[Plugin]) -> type[Plugin]:
    """The one subclass of `base` that a plugin module defines."""
    classes = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, base) and c is not base and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(
            f"{module.__file__} must define exactly one {base.__name__}, not {len(classes)}: one class that "
            f"extends {base.__name__} or another plugin's"
        )
    return classes[0]
