"""Checks of what a parsed JSON file holds: each returns the value, or an error that names the key."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram.utils.errors import UserError

NAN = float("nan")
Item = TypeVar("Item")


def mapping(value: Any, name: str) -> dict[str, Any]:
    """The object with named values; raises `UserError` that names what it should be."""
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected an object with named values, got {shown(value)}")
    return value


def text(value: Any, name: str) -> str:
    """The text; raises `UserError` for anything else."""
    if not isinstance(value, str):
        raise UserError(f"{name}: expected text, got {shown(value)}")
    return value


def optional_text(value: Any, name: str) -> str | None:
    """The text, or None for null."""
    return None if value is None else text(value, name)


def number(value: Any, name: str) -> float:
    """The number, NaN for null; raises `UserError` for anything else, truth values included."""
    if value is None:
        return NAN
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}: expected a number or null, got {shown(value)}")
    return float(value)


def optional_number(value: Any, name: str) -> float | None:
    """The number, or None for null."""
    return None if value is None else number(value, name)


def list_of(value: Any, name: str, convert: Callable[[Any], Item]) -> list[Item]:
    """The list with every item converted; an item that `convert` cannot read is incomplete."""
    if not isinstance(value, list):
        raise UserError(f"{name}: expected a list, got {shown(value)}")
    try:
        return [convert(item) for item in value]
    except (KeyError, TypeError) as error:
        raise UserError(f"{name}: incomplete entry ({error!r})") from None


def square_matrix(value: Any, name: str) -> NDArray[np.float64]:
    """Accuracies (T, T) as fractions in [0, 1], NaN for null."""
    rows = list_of(value, name, lambda row: list_of(row, name, lambda cell: number(cell, name)))
    lengths = {len(row) for row in rows}
    if lengths != {len(rows)}:
        raise UserError(
            f"{name}: expected a square matrix, got {len(rows)} rows of {sorted(lengths)} numbers"
        )
    R = np.array(rows, dtype=np.float64)
    if (R < 0).any() or (R > 1).any():  # NaN is neither
        raise UserError(f"{name}: expected accuracies as fractions from 0 to 1")
    return R


def shown(value: Any) -> str:
    """The value as JSON in 40 characters, for an error."""
    words = json.dumps(value)
    return words if len(words) <= 40 else f"{words[:40]}…"
