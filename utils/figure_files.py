"""Figure files: how figures are sized and written, as PNG without a display."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 100
WIDTH = 12.8  # inches: 1280 pixels


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches that needs no display."""
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | None) -> Figure:
    """Write the figure as PNG where a path is given."""
    if path is not None:
        figure.savefig(path, dpi=DPI)
    return figure
