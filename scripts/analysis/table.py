"""Tables: rows of text made from columns, written as Markdown, LaTeX and CSV, and put into RESULTS.md."""

import csv
import io
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
    "±": r"$\pm$", "λ": r"$\lambda$", "–": "--", "−": "$-$", "<": "$<$", ">": "$>$",
    "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "[": "{[}", "*": "{*}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
}  # fmt: skip
Item = TypeVar("Item")


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column's head, and the function that gives its cell for the item of a row."""

    head: str
    cell: Callable[[Item], str]


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of as many cells; the first n_text columns hold text, the others numbers.

    spans: titles over the head's columns, each with the number of columns below it; LaTeX alone shows them.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    n_text: int = 1
    spans: tuple[tuple[str, int], ...] = ()

    def markdown(self) -> str:
        """A pipe table below the title."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
        )
        return "\n\n".join(text for text in (self.title, body, self.note) if text)

    def latex(self) -> str:
        """A booktabs table whose caption is the title and the note."""
        alignment = "l" * self.n_text + "r" * (len(self.head) - self.n_text)
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{_latex(text)}}}" for text, width in self.spans]
        head, *body = [" & ".join(map(_latex, line)) + r" \\" for line in [self.head, *self.rows]]
        above = [" & ".join(spans) + r" \\"] if spans else []
        caption = _latex(self.title.replace("**", "") + (f". {self.note}" if self.note else ""))
        return "\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule", *above, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ])  # fmt: skip

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
    return Table(title, [column.head for column in columns], rows, note, n_text)


def mean_std(values: ArrayLike, scale: float = 100, digits: int = 2) -> str:
    """`86.40 ± 0.52`, the mean and standard deviation over seeds of scaled values.

    One value has no deviation. Without values, or if one of them is NaN, the text is `–`.
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
    return f"{spread.mean:.{digits}f}" + (f" ± {deviation(spread):.{digits}f}" if spread.n > 1 else "")


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


def _latex(text: str) -> str:
    """A text as LaTeX that prints it as it is, on one line."""
    one_line = " ".join(text.split())
    return re.sub("-(?=-)", "-{}", "".join(LATEX.get(letter, letter) for letter in one_line))
