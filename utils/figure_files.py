"""Figure files: how figures are sized and written, as PDF, SVG and PNG, without a display.

The same figure is the same file, byte for byte: none holds the time at which it was made, nor random names.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engram.utils.destinations import FIGURE_FORMATS
from engram.utils.files import replacing

DPI = 100
PRINT_DPI = 200  # of pictures inside a PDF, and of a PNG beside it
WIDTH = 12.8  # inches: 1280 pixels
# pdf.fonttype 42: TrueType letters, as publishers ask for; Type 3, the default, is refused by many.
STYLE = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "engram"}
WITHOUT_TIME = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches that needs no display."""
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def encoded(figure: Figure, file_format: str, dpi: int = DPI) -> bytes:
    """The content of the figure's file in one of `FIGURE_FORMATS`."""
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format=file_format, dpi=dpi, metadata=WITHOUT_TIME.get(file_format))
    return file.getvalue()


def save(figure: Figure, path: Path | None, dpi: int = DPI) -> Figure:
    """Write the figure, whole or not at all, where a path is given; its ending names the format (PNG)."""
    if path is not None:
        content = encoded(figure, path.suffix[1:] or "png", dpi)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return figure


def save_all(figure: Figure, path: Path, formats: Sequence[str] = FIGURE_FORMATS) -> list[Path]:
    """Write `path` with the ending of each format, fit for print; returns the files."""
    files = [path.with_name(f"{path.name}.{name}") for name in formats]
    for file in files:
        save(figure, file, PRINT_DPI)
    return files
