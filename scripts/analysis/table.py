"""Tables: rows of text made from columns, written as Markdown, LaTeX and CSV, and put into RESULTS.md."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from engram.utils import files
from engram.utils.destinations import check_file
from engram.utils.errors import UserError
from engram.utils.metrics.statistics import Spread, mean_std_ci

MISSING = "–"
STANDARD_DEVIATION = "standard deviation over seeds (ddof = 1)"
# `[` and `*` would be arguments of the `\\` before them; `|` is a dash, `--` too, in LaTeX's own fonts.
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "λ": r"$\lambda$", "–": "--", "−": "$-$", "×": r"$\times$", "<": "$<$", ">": "$>$",
    "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "[": "{[}", "*": "{*}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
}  # fmt: skip
Item = TypeVar("Item")


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column's head, and the function that gives its cell for the item of a row.

    best: `max` or `min` where the largest or the smallest number of the column is the best, else empty.
    """

    head: str
    cell: Callable[[Item], str]
    best: str = ""


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of as many cells; the first n_text columns hold text, the others numbers.

    spans: titles over the head's columns, each with the number of columns below it; LaTeX alone shows them.
    best: for each column `max`, `min` or empty; LaTeX prints the best numbers bold, those of `bounds` aside,
    rows of methods that saw all data at once. label: what LaTeX refers to the table by.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    n_text: int = 1
    spans: tuple[tuple[str, int], ...] = ()
    best: tuple[str, ...] = ()
    bounds: frozenset[int] = frozenset()
    label: str = ""

    def markdown(self) -> str:
        """A pipe table below the title."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
        )
        return "\n\n".join(text for text in (self.title, body, self.note) if text)

    def latex(self) -> str:
        """A booktabs table whose caption is the title and the note, set small so that most fit a page."""
        alignment = "l" * self.n_text + "r" * (len(self.head) - self.n_text)
        bold = self.best_cells()
        body = [
            [self._latex_cell(text, j, (i, j) in bold) for j, text in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        lines = [" & ".join(row) + r" \\" for row in [list(map(_latex, self.head)), *body]]
        caption = _latex(self.title.replace("**", "") + (f". {self.note}" if self.note else ""))
        named = [rf"\label{{tab:{self.label}}}"] if self.label else []
        return "\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", *named,
            r"\small", r"\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", *self._latex_spans(), lines[0], r"\midrule",
            *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ])  # fmt: skip

    def best_cells(self) -> set[tuple[int, int]]:
        """(row, column) of the best number of each column that has one, and of all that print the same."""
        cells: set[tuple[int, int]] = set()
        for j, wanted in enumerate(self.best):
            numbers = {i: _number(row[j]) for i, row in enumerate(self.rows) if i not in self.bounds}
            numbers = {i: number for i, number in numbers.items() if number is not None}
            if wanted and len(numbers) > 1:
                best = max(numbers.values()) if wanted == "max" else min(numbers.values())
                cells |= {(i, j) for i, number in numbers.items() if number == best}
        return cells

    def _latex_cell(self, text: str, column: int, bold: bool) -> str:
        """A cell; in columns of numbers a hyphen is a minus sign, and of the best the mean is bold."""
        if column < self.n_text:
            return _latex(text)
        mean, space, rest = re.sub(r"(?<!\w)-(?=\d)", "−", text).partition(" ")
        return (rf"\textbf{{{_latex(mean)}}}" if bold else _latex(mean)) + space + _latex(rest)

    def _latex_spans(self) -> list[str]:
        """The line of titles over several columns, and the rules below those that say something."""
        if not self.spans:
            return []
        cells, rules, first = [], [], 1
        for text, width in self.spans:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex(text)}}}")
            rules += [rf"\cmidrule(lr){{{first}-{first + width - 1}}}"] if text else []
            first += width
        return [" & ".join(cells) + r" \\", " ".join(rules)]

    def csv(self) -> str:
        """The head and the rows, separated by commas."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.head, *self.rows])
        return file.getvalue()


def make_table(
    items: Iterable[Item], columns: Sequence[Column[Item]], title: str = "", note: str = "", n_text: int = 1
) -> Table:
    """One row for each item, made by the columns."""
    rows = [[column.cell(item) for column in columns] for item in items]
    best = tuple(column.best for column in columns)
    return Table(
        title, [column.head for column in columns], rows, note, n_text, best=best if any(best) else ()
    )


def mean_std(values: ArrayLike, scale: float = 100, digits: int = 2) -> str:
    """`86.40 ± 0.52`, the mean and standard deviation over seeds of scaled values.

    One value has no deviation; a mean that rounds to 0 has no sign. Without values, or if one of them is NaN,
    the text is `–`.
    """
    return _mean_and(lambda spread: spread.std, values, scale, digits)


def mean_error(values: ArrayLike, scale: float = 100, digits: int = 2) -> str:
    """`86.40 ± 0.23`, as `mean_std`, but with the mean's standard error, std / √n."""
    return _mean_and(lambda spread: spread.std / spread.n**0.5, values, scale, digits)


def mean_population_std(values: ArrayLike, scale: float = 100, digits: int = 2) -> str:
    """`86.40 ± 0.48`, as `mean_std`, but with the deviation of these values alone, ddof = 0."""
    return _mean_and(lambda spread: spread.std * ((spread.n - 1) / spread.n) ** 0.5, values, scale, digits)


def _mean_and(deviation: Callable[[Spread], float], values: ArrayLike, scale: float, digits: int) -> str:
    scaled = scale * np.asarray(values, dtype=np.float64)
    if not len(scaled) or np.isnan(scaled).any():
        return MISSING
    spread = mean_std_ci(scaled)
    return f"{spread.mean:z.{digits}f}" + (f" ± {deviation(spread):.{digits}f}" if spread.n > 1 else "")


def signed(value: float, digits: int = 2) -> str:
    """`+1.20` or `-0.30`; what rounds to 0 has no sign."""
    text = f"{value:+z.{digits}f}"
    return text if float(text) else text.removeprefix("+")


def median_text(values: Iterable[float | None]) -> str:
    """The median of the values that were measured, rounded; `–` where none was."""
    measured = [value for value in values if value is not None]
    return f"{np.median(measured):.0f}" if measured else MISSING


def p_text(p: float, digits: int = 3) -> str:
    """`0.023`, or `< 0.001` where it would print as zero; `–` for NaN."""
    if math.isnan(p):
        return MISSING
    smallest = 10.0**-digits
    return f"< {smallest:.{digits}f}" if p < smallest else f"{p:.{digits}f}"


def number_text(value: object) -> str:
    """A value unrounded, for CSV; empty if it is missing or NaN."""
    return "" if value is None or value != value else str(value)


def update(path: Path, name: str, text: str) -> None:
    """Replace what stands between the file's markers for `name`; `UserError` if it has none."""
    before, after = _around(path, name)
    files.write_text(f"{before}\n{text}\n{after}", path)


def check_update(path: Path | None, name: str) -> None:
    """Refuse, before the work is done, a file of --update that `update` could not change; None is no file."""
    if path is not None:
        _around(path, name)
        check_file(path, "--update", (path.suffix,))


def _around(path: Path, name: str) -> tuple[str, str]:
    """The file's text up to its first marker for `name`, included, and from its second marker on."""
    start, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    try:
        before, found, rest = path.read_text(encoding="utf-8").partition(start)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UserError(f"--update {path}: cannot be read ({reason}); give a file with markers") from None
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UserError(f"--update {path}: has no markers '{start}' and '{end}'; put them in, on two lines")
    return before + start, end + after


def _number(cell: str) -> float | None:
    """The number at the start of a cell such as `86.40 ± 0.52`; None where there is none."""
    try:
        return float(cell.split(" ", 1)[0])
    except ValueError:
        return None


def _latex(text: str) -> str:
    """A text as LaTeX that prints it as it is, on one line; `--` and `''` would become other signs."""
    one_line = " ".join(text.split())
    return re.sub(r"([-',])(?=\1)|.", lambda m: m[1] + "{}" if m[1] else LATEX.get(m[0], m[0]), one_line)
