"""The option engine of main.py and of the memorization programs: option sets to a command line and back."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from engram.utils.config.flags import (
    CheckedParser,
    Parser,
    build_sets,
    convert_layer,
    fields_of,
    flatten,
    read_config_file,
)
from engram.utils.config.options import OptionError, OptionSet, option


@dataclass(frozen=True)
class Training(OptionSet):
    lr: float = option(0.1, "learning rate", gt=0)
    sizes: tuple[int, ...] = option((100, 50), "units of the layers")
    fast: bool = option(False, "a switch")
    kind: str = option("sgd", "a choice", choices=("sgd", "adam"))


def parser() -> Parser:
    made = Parser(prog="program", argument_default=argparse.SUPPRESS)
    made.add_argument("--config", metavar="FILE", help="a file")
    made.add_section("training", dataclasses.fields(Training), {"lr": 0.5})
    return made


def test_flags_go_from_text_to_typed_sets_and_back():
    sets = {"training": Training}
    raw = parser().read(["--lr", "0.25", "--sizes", "3,4", "--fast"])
    assert raw == {"lr": "0.25", "sizes": "3,4", "fast": "1"}, "only what was given, as text"
    built = build_sets(sets, convert_layer("command line", raw, fields_of(sets)))
    assert built == {"training": Training(lr=0.25, sizes=(3, 4), fast=True)}
    assert flatten(built.values()) == {"lr": 0.25, "sizes": [3, 4], "fast": True, "kind": "sgd"}


def test_the_help_shows_sections_and_the_defaults_in_force():
    text = parser().format_help()
    assert "training:" in text and "learning rate (default: 0.5)" in text
    assert "--sizes N,..." in text and "(default: 100,50)" in text
    assert "--fast [0|1]" in text and "(default: 0)" in text and "--kind sgd|adam" in text


@pytest.mark.parametrize(
    ("flag", "other"), [("--lrr=1", "--lr"), ("--confg", "--config"), ("--lits", "--list")]
)
def test_a_misspelled_flag_is_answered_by_a_near_one(flag, other):
    with pytest.raises(OptionError, match=rf"unknown argument {flag[:5]}.*did you mean {other}"):
        parser().read([flag], other_flags=["--list"])


def test_errors_name_the_source_of_a_value():
    fields = fields_of({"training": Training})
    with pytest.raises(OptionError, match=r"--config a.yaml: --lr many: expected a number"):
        convert_layer("--config a.yaml", {"lr": "many"}, fields)
    with pytest.raises(OptionError, match=r"preset: unknown flag --siezs; did you mean sizes"):
        convert_layer("preset", {"siezs": 1}, fields)
    with pytest.raises(OptionError, match=r"--lr 0.0: must be > 0"):
        build_sets({"training": Training}, {"lr": 0.0})


def test_two_sets_cannot_define_one_flag():
    with pytest.raises(RuntimeError, match="flag --lr is defined by one and two"):
        fields_of({"one": Training, "two": Training})


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n"])
def test_a_config_file_is_a_mapping(text, tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match="--config"):
        read_config_file(str(path))
    path.write_text("--lr: 0.2\nfast: true\n")
    assert read_config_file(str(path)) == {"lr": 0.2, "fast": True}


@pytest.mark.parametrize("value", ["--config=--", "--config=a\0b", "--config=~nouser/x", "--kind=\udcff"])
@pytest.mark.parametrize("kind", [Parser, CheckedParser])
def test_text_that_no_flag_takes_is_refused_before_it_is_used(value, kind):
    made = kind()
    made.add_argument("--config")
    made.add_argument("--kind")
    with pytest.raises(OptionError, match=f"^{value[:6]}"):
        made.parse_args([value])
    assert made.parse_args(["--config", "~/x", "--kind=-"]).config == "~/x"


@pytest.mark.parametrize("kinds", [{"type": Path}, {"nargs": "+"}, {"nargs": "*", "type": Path}])
def test_paths_and_lists_are_text_too(kinds):
    made = CheckedParser()
    made.add_argument("--out", **kinds)
    for value in ("a\0b", "~nouser/x", "\udcff"):
        with pytest.raises(OptionError, match=r"^--out"):
            made.parse_args(["--out", value])
    assert made.parse_args(["--out", "~/x"]).out in (Path("~/x"), ["~/x"], [Path("~/x")])
