"""Program: the command line of a program of this room: flags in, checked option sets out."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engram.memorization import settings
from engram.memorization.settings import DATASETS, OPERATIONAL
from engram.utils.config import registry
from engram.utils.config.cli import Parser, add_flag, formatter
from engram.utils.config.options import OptionError, OptionSet, convert
from engram.utils.errors import UserError

# The groups that say which networks are trained on what; "architecture" is added by `parse`.
STUDY = {
    "data": settings.DataOptions,
    "network": settings.NetworkOptions,
    "recipe": settings.RecipeOptions,
}
MACHINE = {"machine": settings.MachineOptions}
SETTINGS = "settings.json"


class Options(SimpleNamespace):
    """The option sets of a program by group name: `options.recipe.lr`."""

    def flat(self, *groups: str) -> dict[str, Any]:
        """Flag → value of some groups (default: all), tuples as lists: what is saved and compared."""
        values: dict[str, Any] = {}
        for name, group in vars(self).items():
            if not groups or name in groups:
                values |= dataclasses.asdict(group)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def parse(module: str, text: str, groups: dict[str, type[OptionSet]], argv: list[str]) -> Options:
    """The options of the program `python -m memorization.MODULE`; prints and exits for --help.

    text: what the program does. The settings saved in --weights_dir win over defaults and must not be
    contradicted.
    """
    raw, wants_help = _first_reading(argv)
    known = saved_settings(raw["weights_dir"]) if "weights_dir" in raw and not wants_help else {}
    chosen = {**known, **raw}
    defaults = DATASETS.get(chosen.get("dataset_name", settings.DataOptions.dataset_name), {})
    model = chosen.get("model_name")
    if "network" in groups and (model or not wants_help):
        name = registry.canonical("backbones", model or defaults.get("model_name", "mlp"))
        defaults = {**defaults, "model_name": name}
        groups = {**groups, "architecture": getattr(registry.load("backbones", name), "Options", OptionSet)}
    parser = _parser(module, text, groups, defaults)
    if wants_help:
        print(parser.format_help())
        sys.exit(0)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [o for action in parser._actions for o in action.option_strings]
        flag = unknown[0].split("=")[0]
        raise OptionError(f"unknown argument {flag}{registry.suggest(flag, flags)} (see --help)")
    return Options(**_build(groups, defaults, known, vars(given)))


def saved_settings(folder: str) -> dict[str, Any]:
    """What the networks in a folder were made with; empty for a new one."""
    file = Path(folder).expanduser() / SETTINGS
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}); restore it or use a new folder") from None


def _first_reading(argv: list[str]) -> tuple[dict[str, str], bool]:
    """The flags that decide which other flags exist or where settings lie; whether help is wanted."""
    chooser = Parser(add_help=False, allow_abbrev=False)
    for flag in ("dataset_name", "model_name", "weights_dir"):
        chooser.add_argument(f"--{flag}")
    chooser.add_argument("-h", "--help", action="store_true")
    given, _ = chooser.parse_known_args(argv)
    named = {k: v for k, v in vars(given).items() if k != "help" and v is not None}
    return named, given.help


def _parser(module: str, text: str, groups: dict[str, type[OptionSet]], defaults: dict[str, Any]) -> Parser:
    parser = Parser(
        prog=f"python -m memorization.{module}", description=text, add_help=False, allow_abbrev=False,
        argument_default=argparse.SUPPRESS, formatter_class=formatter,
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    for name, options in groups.items():
        title = name if name != "architecture" else f"backbone {defaults['model_name']}"
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(options):
            add_flag(group, field, defaults.get(field.name, field.default))
    return parser


def _build(groups, defaults, known: dict[str, Any], given: dict[str, Any]) -> dict[str, OptionSet]:
    fields = {f.name: f for options in groups.values() for f in dataclasses.fields(options)}
    values = {k: convert(fields[k], v) for k, v in {**defaults, **known}.items() if k in fields}
    for name, raw in given.items():
        value = convert(fields[name], raw)
        if name in known and name not in OPERATIONAL and value != values[name]:
            raise OptionError(
                f"--{name} {raw}: the networks in --weights_dir were trained with {known[name]}; leave the "
                "flag out, or give another folder"
            )
        values[name] = value
    if "model_name" in fields:
        values["model_name"] = registry.canonical("backbones", values["model_name"])
    sets = {}
    for name, options in groups.items():
        own = {f.name: values[f.name] for f in dataclasses.fields(options) if f.name in values}
        sets[name] = options(**own)
    return sets


def require(options: OptionSet, *names: str) -> None:
    """Raise `OptionError` for flags that were not given and have no default."""
    for name in names:
        if getattr(options, name) is None:
            raise OptionError(f"--{name} is missing (see --help)")


def main(run: Callable[[list[str]], None]) -> int:
    """Run a program; errors that are the user's to mend are one line and exit code 2."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
