"""Flags: option sets become a command line and back. One engine for main.py and the memorization programs.

    sets = {"train": TrainOptions}
    parser = Parser(prog="main.py", argument_default=argparse.SUPPRESS)
    parser.add_section("training", dataclasses.fields(TrainOptions), defaults={})
    raw = parser.read(argv)                                         # {"lr": "0.1"}: text, as it was given
    values = convert_layer("command line", raw, fields_of(sets))    # {"lr": 0.1}
    options = build_sets(sets, values)                              # {"train": TrainOptions(lr=0.1)}

Nothing here imports torch, so `--help` is quick.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from engram.utils import yaml_files
from engram.utils.config import mammoth, option_names
from engram.utils.config.options import MAX_COUNT, OptionError, OptionSet, check_text, convert, value_type
from engram.utils.config.registry import suggest
from engram.utils.terminal import say_once

METAVARS: dict[type, str] = {bool: "0|1", int: "N", float: "X", str: "TEXT"}
Sets = Mapping[str, type[OptionSet]]
CONFIG_FILE = "a YAML file, a mapping from flag names to values, e.g. 'lr: 0.1'"
COUNT = (1, MAX_COUNT)  # the bounds of a flag that says how many


class CheckedParser(argparse.ArgumentParser):
    """argparse that refuses, in one line, text which no flag of any program takes."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse's
        """As in argparse; a wrong text is an `OptionError` before anybody uses it."""
        for text in sys.argv[1:] if args is None else args:
            if text.startswith("--") and text.endswith("=--"):  # argparse makes an empty list of it
                raise OptionError(f"{text}: -- is not a value; give one, or leave the flag out")
        given, rest = super().parse_known_args(args, namespace)
        for name, value in vars(given).items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str | Path):
                    check_text(name, str(item))
        return given, rest


def check_bounds(given: argparse.Namespace, **bounds: tuple[int, int]) -> None:
    """Raise `OptionError` for a number outside of its flag's (least, largest); None, not given, is allowed.

    For parsers without option sets, whose fields carry their bounds.
    """
    for name, (least, largest) in bounds.items():
        value = getattr(given, name)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            if not least <= number <= largest:
                limit = f">= {least}" if number < least else f"<= {largest}"
                raise OptionError(f"--{name} {number}: must be {limit}")


class Parser(CheckedParser):
    """argparse with a help section for each option set; its errors are raised as `OptionError`."""

    def __init__(self, **keywords: Any):
        self.flags: list[str] = []
        self.many: set[str] = set()  # flags that take several values
        super().__init__(add_help=False, allow_abbrev=False, formatter_class=wide_formatter, **keywords)

    def add_argument(self, *names: str, **keywords: Any) -> argparse.Action:
        """As in argparse; the flag is also remembered, to be suggested for a misspelled one."""
        self.flags += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **keywords)

    def add_section(
        self, title: str, fields: Iterable[dataclasses.Field], defaults: Mapping[str, Any]
    ) -> None:
        """A section of the help with one flag for each field; `defaults` win over the fields' own in it."""
        group = self.add_argument_group(title)
        for field in fields:
            names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
            self.flags += names
            self.many |= set(names if value_type(field)[1] else ())
            keywords = flag_keywords(field, defaults.get(field.name, field.default))
            group.add_argument(*names, dest=field.name, **keywords)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse's
        """As in argparse, but `--lr_milestones 3 5` is `--lr_milestones 3,5`."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(joined_values(words, self.many), namespace)

    def read(self, argv: list[str], other_flags: Iterable[str] = ()) -> dict[str, Any]:
        """The value of each flag as argparse gives it.

        An unknown flag is refused with the plugins that have it, or with near matches.

        A flag of mammoth that asks for what holds anyway is left out with a note.

        other_flags: valid ones that this parser does not have, to be suggested too.
        """
        given, unknown = self.parse_known_args(argv)
        if unknown := without_accepted(unknown):
            flag = unknown[0].split("=")[0]
            mammoths_answer = mammoth.answer(flag, value_of(unknown))
            of_others = option_names.owners(flag.removeprefix("--"))
            hint = of_others or suggest(flag, [*self.flags, *other_flags])
            raise OptionError(mammoths_answer or f"unknown argument {flag}{hint} (see --help)")
        return vars(given)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise OptionError(message)


def without_accepted(unknown: list[str]) -> list[str]:
    """The arguments without those flags of mammoth, and their values, that ask for what holds anyway."""
    kept, rest = [], list(unknown)
    while rest:
        flag, value = rest[0].split("=")[0], value_of(rest)
        if mammoth.is_accepted(flag, value):
            say_once(f"note: {mammoth.answer(flag, value)}")
            del rest[: 1 if value is None or "=" in rest[0] else 2]
        else:
            kept.append(rest.pop(0))
    return kept


def value_of(unknown: list[str]) -> str | None:
    """The value of the first of these arguments, `--flag=value` or `--flag value`; None without one."""
    _, equals, value = unknown[0].partition("=")
    if equals:
        return value
    return unknown[1] if len(unknown) > 1 and not unknown[1].startswith("-") else None


def joined_values(words: Iterable[str], many: Container[str]) -> list[str]:
    """Arguments in which the values after a flag of `many` are one word, separated by commas."""
    joined: list[str] = []
    n_values = -1  # seen since the last flag of `many`; -1 behind any other flag
    for word in words:
        if re.match(r"-(?![\d.])", word):
            flag, equals, _ = word.partition("=")
            n_values = int(bool(equals)) if flag in many else -1
            joined.append(word)
        elif n_values > 0:
            joined[-1] += f",{word}"
        else:
            n_values += n_values == 0
            joined.append(word)
    return joined


def wide_formatter(prog: str) -> argparse.HelpFormatter:
    """Help in wide lines, with the flags in a column of their own."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110)


def flag_keywords(field: dataclasses.Field, default: Any) -> dict[str, Any]:
    """Arguments of `add_argument` for a field: its help with the default in force, and how values look."""
    kind, many = value_type(field)
    choices = field.metadata["choices"]
    metavar = "|".join(choices) if choices and kind is str else METAVARS[kind]
    shown = ",".join(map(str, default)) if many else int(default) if isinstance(default, bool) else default
    text = field.metadata["help"] + (f" (default: {shown})" if default not in (None, (), "") else "")
    keywords = {"metavar": f"{metavar},..." if many else metavar, "help": text}
    return keywords | ({"nargs": "?", "const": "1"} if kind is bool else {})


def read_config_file(path: str) -> dict[str, Any]:
    """The flags in a YAML file: a flat mapping from flag name to value."""
    try:
        content = yaml_files.read(Path(path))
    except yaml_files.YamlFileError as error:
        raise OptionError(f"--config {path}: {error}; expected {CONFIG_FILE}") from None
    if not isinstance(content, dict):
        raise OptionError(f"--config {path}: expected {CONFIG_FILE}")
    return {str(key).removeprefix("--"): value for key, value in content.items()}


def fields_of(sets: Sets) -> dict[str, dataclasses.Field]:
    """Flag → field of all option sets; `RuntimeError` where two of them define the same flag."""
    owners: dict[str, str] = {}
    fields: dict[str, dataclasses.Field] = {}
    for name, options in sets.items():
        for field in dataclasses.fields(options):
            if field.name in owners:
                raise RuntimeError(f"flag --{field.name} is defined by {owners[field.name]} and {name}")
            owners[field.name], fields[field.name] = name, field
    return fields


def convert_layer(
    source: str, raw: Mapping[str, Any], fields: Mapping[str, dataclasses.Field]
) -> dict[str, Any]:
    """Raw values of one source (a file, the command line) in their fields' types.

    Raises `OptionError` for unknown flags and for values that cannot be converted, naming the source.
    """
    values = {}
    for name, value in own_names(raw, fields).items():
        if name not in fields:
            text = str(int(value)) if isinstance(value, bool) else str(value)
            mammoths_answer = mammoth.answer(f"--{name}", text)
            if mammoth.is_accepted(f"--{name}", text):
                say_once(f"note: {source}: {mammoths_answer}")
                continue
            hint = suggest(name, list(fields))
            raise OptionError(f"{source}: {mammoths_answer or f'unknown flag --{name}{hint} (see --help)'}")
        try:
            values[name] = convert(fields[name], value)
        except OptionError as error:
            raise OptionError(f"{source}: {error}") from None
    return values


def own_names(raw: Mapping[str, Any], fields: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """The values under the names of their fields, where they are given under aliases."""
    names = {alias: name for name, field in fields.items() for alias in field.metadata["aliases"]}
    return {names.get(name, name): value for name, value in raw.items()}


def build_sets(sets: Sets, values: Mapping[str, Any]) -> dict[str, OptionSet]:
    """The option sets with these values, defaults for the rest; `OptionError` for a value out of bounds."""
    return {
        name: options(**{f.name: values[f.name] for f in dataclasses.fields(options) if f.name in values})
        for name, options in sets.items()
    }


def flatten(sets: Iterable[OptionSet]) -> dict[str, Any]:
    """Flag → value of built option sets, tuples as lists: what is saved, logged and read back."""
    values: dict[str, Any] = {}
    for options in sets:
        values |= dataclasses.asdict(options)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
