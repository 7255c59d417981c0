"""Options: frozen dataclass fields that carry default, bounds and help, and become command-line flags.

    @dataclass(frozen=True)
    class Options(OptionSet):
        alpha: float = option(0.5, "weight of the replay loss", ge=0)

One field is one flag, one preset key and one line of documentation.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram.utils.errors import UserError

BOUNDS = {
    "ge": (">=", lambda value, bound: value >= bound),
    "gt": (">", lambda value, bound: value > bound),
    "le": ("<=", lambda value, bound: value <= bound),
    "lt": ("<", lambda value, bound: value < bound),
}


MAX_COUNT = 10**9  # of whole numbers that have no bound of their own: no run has as many of anything
SEEDS = 2**63
MAX_FILE_NAME = 255  # bytes, in nearly every file system


Pixels = tuple[
    tuple[float, ...], tuple[float, ...]
]  # mean and deviation of pixels in [0, 1], a value a channel


class OptionError(UserError):
    """A value the user gave is not valid; the message says what is."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple | None = None,
    aliases: tuple[str, ...] = (),
    spellings: Mapping[str, str] | None = None,
    **bounds: float,
) -> Any:
    """A dataclass field with its help text, bounds (`ge`, `gt`, `le`, `lt`) and choices.

    aliases: other names of the flag. spellings: other words for a value → the value.
    """
    assert set(bounds) <= set(BOUNDS), bounds
    metadata = {"help": help, "choices": choices, "bounds": bounds}
    return dataclasses.field(
        default=default, metadata={**metadata, "aliases": aliases, "spellings": spellings or {}}
    )


@dataclasses.dataclass(frozen=True)
class OptionSet:
    """Base of every set of options: checks its own values when built."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))

    def pixels(self, backbone: str) -> Pixels | None:
        """Of a backbone's flags: the pixels that its pre-trained weights expect; None where it has none."""
        return None

    def for_side(self, side: int) -> "OptionSet":
        """Of a backbone's flags: as they are for images that --img_size has brought to `side`."""
        return self


def check(field: dataclasses.Field, value: Any) -> None:
    """Raise `OptionError` when `value` breaks the field's choices or bounds."""
    if value is None:
        return
    choices = field.metadata.get("choices")
    values = value if isinstance(value, tuple) else (value,)
    for item in values:
        if choices is not None and item not in choices:
            raise OptionError(f"--{field.name} {item}: choose one of {', '.join(map(str, choices))}")
        if isinstance(item, float) and not math.isfinite(item):
            raise OptionError(f"--{field.name} {item}: must be a finite number")
        bounds = field.metadata.get("bounds", {})
        if isinstance(item, int) and not bounds.keys() & {"le", "lt"}:
            bounds = bounds | {"le": MAX_COUNT}
        for name, bound in bounds.items():
            symbol, holds = BOUNDS[name]
            if not holds(item, bound):
                raise OptionError(f"--{field.name} {item}: must be {symbol} {bound}")


def value_type(field: dataclasses.Field) -> tuple[type, bool]:
    """The scalar type of a field and whether it holds a tuple of them.

    Fields are annotated `int`, `float`, `str`, `bool`, one of these with `| None`, or `tuple[T, ...]`.
    """
    annotation = field.type
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def convert(field: dataclasses.Field, raw: Any) -> Any:
    """Turn a command-line string or a YAML value into the field's type, or raise `OptionError`."""
    kind, many = value_type(field)
    if raw is None:
        if field.default is not None:
            raise OptionError(f"--{field.name}: a value is missing; expected {kind.__name__}")
        return None
    if many:
        items = raw.replace(",", " ").split() if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple):
            items = [items]
        return tuple(_scalar(field, kind, item) for item in items)
    return _scalar(field, kind, raw)


def _scalar(field: dataclasses.Field, kind: type, raw: Any) -> Any:
    text = str(raw).strip()
    if kind is bool:
        truth = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() in truth:
            return truth[text.lower()]
        raise OptionError(f"--{field.name} {raw}: expected 0 or 1 (also true/false, yes/no)")
    check_text(field.name, text, kind is str)
    text = field.metadata.get("spellings", {}).get(text, text)
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number", str: "text"}[kind]
        raise OptionError(f"--{field.name} {raw}: expected {wanted}") from None


def check_text(name: str, text: str, may_be_path: bool = True) -> None:
    """Raise `OptionError` for text of a flag that no name and no path may be."""
    if "\0" in text:
        raise OptionError(f"--{name} {text!r}: holds a NUL character, which no name or path may")
    if text != text.encode(errors="replace").decode():
        raise OptionError(f"--{name} {text!r}: holds bytes that are not UTF-8")
    if may_be_path and any(len(os.fsencode(part)) > MAX_FILE_NAME for part in text.split("/")):
        raise OptionError(f"--{name} {text[:40]}...: a name longer than {MAX_FILE_NAME} bytes")
    if may_be_path and text.startswith("~"):
        _refuse_unknown_home(name, text)


def _refuse_unknown_home(name: str, path: str) -> None:
    try:
        Path(path).expanduser()
    except RuntimeError:  # HOME is not set and the user has no entry in /etc/passwd, or `~nobody`
        raise OptionError(
            f"--{name} {path}: there is no such home directory; give a path without ~"
        ) from None
