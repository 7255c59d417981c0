"""Figure files: how figures are sized and written, as PNG without a display."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engram.utils.files import replacing

DPI = 100
WIDTH = 12.8  # inches: 1280 pixels


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches that needs no display."""
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | None, dpi: int = DPI) -> Figure:
    """Write the figure, whole or not at all, where a path is given; its ending names the format (PNG)."""
    if path is not None:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=dpi, format=path.suffix[1:] or "png")
    return figure
