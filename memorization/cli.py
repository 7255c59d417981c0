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
from engram.utils.config.flags import (
    Parser,
    build_sets,
    convert_layer,
    fields_of,
    flatten,
    read_config_file,
)
from engram.utils.config.options import OptionError, OptionSet
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

    def flat(self) -> dict[str, Any]:
        """Flag → value, tuples as lists: what is saved and compared."""
        return flatten(vars(self).values())


def parse(module: str, text: str, groups: dict[str, type[OptionSet]], argv: list[str]) -> Options:
    """The options of the program `python -m memorization.MODULE`; prints and exits for --help.

    text: what the program does, for the help. The last of these to give a value decides: the defaults of
    the data set, the settings saved in --weights_dir, the file given as --config, the command line. The
    saved settings must not be contradicted, since networks have been trained with them.
    """
    chosen = _first_reading(argv)
    wants_help = chosen.pop("help", False)
    file = read_config_file(chosen["config"]) if "config" in chosen else {}
    given = file | chosen
    saved = saved_settings(given["weights_dir"]) if "weights_dir" in given and not wants_help else {}
    given = saved | given
    defaults = dict(DATASETS.get(given.get("dataset_name", settings.DataOptions.dataset_name), {}))
    if "network" in groups and ("model_name" in given or not wants_help):
        model = given.get("model_name", defaults.get("model_name", "mlp"))
        defaults["model_name"] = name = registry.canonical("backbones", model)
        groups = {**groups, "architecture": getattr(registry.load("backbones", name), "Options", OptionSet)}
    parser = _parser(module, text, groups, defaults)
    if wants_help:
        print(parser.format_help())
        sys.exit(0)
    flags = parser.read(argv)
    flags.pop("config", None)
    layers = {f"--config {chosen.get('config')}": file, "command line": flags}
    return Options(**build_sets(groups, _values(groups, defaults, saved, layers)))


def saved_settings(folder: str) -> dict[str, Any]:
    """What the networks in a folder were made with; empty for a new one."""
    file = Path(folder).expanduser() / SETTINGS
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}); restore it or use a new folder") from None


def _first_reading(argv: list[str]) -> dict[str, Any]:
    """What decides which other flags exist or where settings lie, and whether help is wanted, if given."""
    chooser = Parser(argument_default=argparse.SUPPRESS)
    for flag in ("dataset_name", "model_name", "weights_dir", "config"):
        chooser.add_argument(f"--{flag}")
    chooser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)
    return vars(chooser.parse_known_args(argv)[0])


def _parser(module: str, text: str, groups: dict[str, type[OptionSet]], defaults: dict[str, Any]) -> Parser:
    parser = Parser(
        prog=f"python -m memorization.{module}", description=text, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; the command line wins over it")
    for name, options in groups.items():
        title = name if name != "architecture" else f"backbone {defaults['model_name']}"
        parser.add_section(title, dataclasses.fields(options), defaults)
    return parser


def _values(groups, defaults: dict, saved: dict, layers: dict[str, dict]) -> dict[str, Any]:
    """Flag → typed value in force; `OptionError` where a layer contradicts the saved settings."""
    fields = fields_of(groups)
    base = {name: value for name, value in {**defaults, **saved}.items() if name in fields}
    values = convert_layer("saved settings", base, fields)
    for source, raw in layers.items():
        layer = convert_layer(source, raw, fields)
        for name, value in layer.items():
            if name in saved and name not in OPERATIONAL and value != values[name]:
                raise OptionError(
                    f"--{name} {raw[name]}: the networks in --weights_dir were trained with {saved[name]}; "
                    "leave the flag out, or give another folder"
                )
        values |= layer
    if "model_name" in fields:
        values["model_name"] = registry.canonical("backbones", values["model_name"])
    return values


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
