"""Command line of the memorization programs: flags in, checked options out.

A program declares its option sets and a dataclass that holds them, and calls `parse` before it imports
anything heavy, so that `--help` is quick.
"""

import argparse
import dataclasses
import importlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, TypeVar, cast

import engram
from engram.memorization.settings import DATASETS, OLDER, OPERATIONAL, DataOptions, StudyConfig
from engram.utils import files
from engram.utils.config import option_names, registry
from engram.utils.config.flags import (
    Parser,
    build_sets,
    convert_layer,
    fields_of,
    own_names,
    read_config_file,
)
from engram.utils.config.options import OptionError, OptionSet
from engram.utils.destinations import check_file, check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.terminal import say_start

SETTINGS = "settings.json"
Sets = dict[str, type[OptionSet]]
ConfigT = TypeVar("ConfigT", bound=StudyConfig)
OptionsT = TypeVar("OptionsT", bound=OptionSet)


def parse(program: str, text: str, kind: type[ConfigT], argv: list[str]) -> ConfigT:
    """The options of the study program `python -m memorization.PROGRAM`; prints and exits for --help.

    text: the program's docstring, for the help. kind: the dataclass to fill; each of its fields is an option
    set. The last of these to give a value decides: the defaults of the data set, the settings saved in
    --weights_dir, the file given as --config, the command line. The saved settings must not be
    contradicted, since networks have been trained with them.
    """
    inherited = {field.name for field in dataclasses.fields(StudyConfig)}
    fields = sorted(dataclasses.fields(kind), key=lambda field: field.name in inherited)
    sets = {field.name: cast(type[OptionSet], field.type) for field in fields}
    return kind(**_parse(program, text, sets, argv))


def parse_options(program: str, text: str, kind: type[OptionsT], argv: list[str]) -> OptionsT:
    """The options of a program that trains nothing and has a single option set, as `parse`."""
    return cast(OptionsT, _parse(program, text, {program: kind}, argv)[program])


def _parse(program: str, text: str, sets: Sets, argv: list[str]) -> dict[str, Any]:
    chosen = _first_reading(argv)
    wants_help = chosen.pop("help", False)
    file = read_config_file(chosen["config"]) if "config" in chosen else {}
    file = own_names(file, fields_of(sets))
    given = file | chosen
    saved = saved_settings(given["weights_dir"]) if "weights_dir" in given and not wants_help else {}
    saved = OLDER | own_names(saved, fields_of(sets)) if saved else {}
    given = saved | given
    dataset = given.get("dataset", DataOptions.dataset)
    defaults = dict(DATASETS.get(dataset, {}))
    backbone = given.get("backbone", None if wants_help else defaults.get("backbone", "mlp"))
    if not wants_help:
        _refuse_wrong(argv, program, sets, backbone)
        say_start(f"{program}{f' on {dataset}' if 'architecture' in sets else ''}: loading PyTorch")
    if "architecture" in sets:
        sets = _with_backbone(sets, defaults, backbone)
    parser = _parser(program, text, sets, defaults)
    if wants_help:
        print(parser.format_help())
        sys.exit(0)
    flags = parser.read(argv)
    flags.pop("config", None)
    layers = {f"--config {chosen.get('config')}": file, "command line": flags}
    return build_sets(sets, _values(sets, defaults, saved, layers))


def saved_settings(folder: str) -> dict[str, Any]:
    """What the networks in a folder were made with; empty for a new folder."""
    file = Path(folder).expanduser() / SETTINGS
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # of the latter programs that write speak themselves
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}); restore it or use a new folder") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file}: damaged (no named values); restore it or use a new folder")
    if files.has_changed(settings):
        raise UserError(f"{file}: damaged (its checksum is another); restore it or use a new folder")
    settings.pop(files.CHECKSUM, None)
    return settings


def _first_reading(argv: list[str]) -> dict[str, Any]:
    """Those of the given flags that decide which other flags exist, or where saved settings are."""
    chooser = Parser(argument_default=argparse.SUPPRESS)
    names = {"dataset": ("dataset_name",), "backbone": ("model_name",), "weights_dir": (), "config": ()}
    for flag, aliases in names.items():
        chooser.add_argument(*(f"--{name}" for name in (flag, *aliases)), dest=flag)
    chooser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS)
    return vars(chooser.parse_known_args(argv)[0])


def _refuse_wrong(argv: list[str], program: str, sets: Sets, backbone: str | None) -> None:
    """Raise `OptionError` for a flag that does not exist or takes no such value, before torch is imported.

    Of the backbone's flags only the names are known yet.
    """
    without_backbone = {name: options for name, options in sets.items() if name != "architecture"}
    parser = _parser(program, "", without_backbone, {})
    if "architecture" in sets and backbone is not None:
        for name in sorted(option_names.of_plugin("backbones", backbone)):
            parser.add_argument(f"--{name}", nargs="*")
    fields = fields_of(without_backbone)
    given = parser.read(argv)
    convert_layer("command line", {name: text for name, text in given.items() if name in fields}, fields)


def _with_backbone(sets: Sets, defaults: dict[str, Any], backbone: str | None) -> Sets:
    """The sets with the backbone's own options as "architecture"; without them if no backbone is chosen."""
    if backbone is None:
        return {name: options for name, options in sets.items() if name != "architecture"}
    defaults["backbone"] = registry.canonical("backbones", backbone)
    module = registry.load("backbones", defaults["backbone"])
    return sets | {"architecture": getattr(module, "Options", OptionSet)}


def package() -> str:
    """The name by which Python finds the programs of this folder."""
    return "engram.memorization" if engram.is_installed else "memorization"


def _parser(program: str, text: str, sets: Sets, defaults: dict[str, Any]) -> Parser:
    parser = Parser(
        prog=f"python -m {package()}.{program}", description=text, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; the command line wins over it")
    for name, options in sets.items():
        title = name if name != "architecture" else f"backbone {defaults['backbone']}"
        parser.add_section(title, dataclasses.fields(options), defaults)
    return parser


def _values(
    sets: Sets, defaults: dict[str, Any], saved: dict[str, Any], layers: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Flag → typed value in force; `OptionError` where a layer contradicts the saved settings."""
    fields = fields_of(sets)
    start = {name: value for name, value in {**defaults, **saved}.items() if name in fields}
    values = convert_layer(SETTINGS, start, fields)
    for source, raw in layers.items():
        layer = convert_layer(source, raw, fields)
        for name, value in layer.items():
            if name in saved and name not in OPERATIONAL and value != values[name]:
                raise OptionError(
                    f"--{name} {raw[name]}: the networks in --weights_dir were trained with {saved[name]}; "
                    "leave the flag out, or give another folder"
                )
        values |= layer
    if "backbone" in fields:
        values["backbone"] = registry.canonical("backbones", values["backbone"])
    return values


def require(options: OptionSet, *names: str) -> None:
    """Raise `OptionError` for flags that were not given and whose default is empty."""
    for name in names:
        if not getattr(options, name):
            raise OptionError(f"--{name} is missing (see --help)")


def check_weights_dir(folder: str) -> None:
    """Refuse, before networks are trained, a folder that cannot take them."""
    check_folder(folder, "--weights_dir")


def check_out(out_filename: str, *suffixes: str) -> None:
    """Refuse, before networks are trained, a score file that cannot be written or another kind of file."""
    check_file(out_filename, "--out_filename", suffixes, _is_study_file)


def _is_study_file(path: Path) -> bool:
    """Whether the file holds scores or proxies, as those that these programs write."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return bool({"scores.npy", "proxies.npy"} & set(archive.namelist()))
    with open(path, "rb") as file:  # .npy: numpy, which takes long to import, need not read it
        return re.search(rb"'descr': '<f\d'.*'shape': \(\d+,\)", file.read(128)) is not None


@guarded
def main(program: str) -> int:
    """Run a program; an error that the user can mend is printed as one line and gives exit code 2.

    The program is run under its import name rather than as `__main__`, so that its classes can be sent to
    worker processes.
    """
    importlib.import_module(f"engram.memorization.{program}").run(sys.argv[1:])
    return 0
