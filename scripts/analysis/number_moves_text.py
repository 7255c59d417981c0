"""What `report.py --check` prints of tables that are older than changes: a block for each table."""

import textwrap
from collections.abc import Iterable

from engram.scripts.analysis.number_moves import Reason, TableAge

WIDTH = 110
MISSING = Reason("NOT LISTED", "run it again, or say in number_moves.yaml why it stands")
# commit, rows and reason of entries that are shown as one, as a change with several conditions has several
Shared = tuple[str, tuple[str, ...], Reason]


def blocks(ages: Iterable[TableAge]) -> list[str]:
    """Lines: each table, below it the rows that are older than a change, why they stand and what to run."""
    tables: dict[str, dict[Shared, list[str]]] = {}
    for age in ages:
        shared = age.move.commit, tuple(age.rows), age.move.stale.get(age.table, MISSING)
        tables.setdefault(age.table, {}).setdefault(shared, []).append(age.move.what)
    lines = []
    for table, changes in tables.items():
        lines.append(f"{table}:")
        for (commit, rows, reason), whats in changes.items():
            older = f"{_first(rows)}: older than {commit} ({'; '.join(_distinct(whats))})"
            lines += textwrap.wrap(older, WIDTH, initial_indent="  ", subsequent_indent=" " * 6)
            lines += textwrap.wrap(reason.why, WIDTH, initial_indent="    ", subsequent_indent="    ")
            lines.append(f"    {reason.rerun}")  # a command, which is copied as one line
    return lines


def _distinct(whats: list[str]) -> list[str]:
    """Each once; what begins as another one and adds to it is left out."""
    return [w for w in dict.fromkeys(whats) if not any(w.startswith(other) for other in whats if other != w)]


def _first(rows: tuple[str, ...]) -> str:
    """The names of a few rows and the number of the others."""
    return ", ".join(rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
