"""Galleries: the most and least memorized images of each class; pairs of training and test images."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from engram.memorization.study_data import StudyData
from engram.utils.figure_files import canvas, save

N_EXTREMES = 8  # images at either end
MAX_CLASSES = 10
N_PAIRS = 12


def extremes(data: StudyData, scores: NDArray[np.float64], path: Path) -> None:
    """A row for each class (the first ten): least memorized on the left, most memorized on the right."""
    labels, images = data.labels.cpu().numpy(), data.images.cpu().numpy()
    classes = np.unique(labels)[:MAX_CLASSES]
    figure = canvas(14.0, 0.98 * len(classes) + 0.7)
    widths = [1.0] * N_EXTREMES + [0.35] + [1.0] * N_EXTREMES
    panels = figure.subplots(len(classes), len(widths), squeeze=False, width_ratios=widths)
    for row, label in zip(panels, classes, strict=True):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(scores[members], kind="stable")]
        k = min(N_EXTREMES, len(order))
        for axes in row:
            axes.set_axis_off()
        for axes, i in zip(row[:k], order[:k], strict=True):
            show(axes, images[i], caption(scores[i]))
        for axes, i in zip(row[len(row) - k :], order[::-1][:k], strict=True):
            show(axes, images[i], caption(scores[i]))
        name = str(data.class_names[label])
        row[0].text(-0.18, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=10)
    middle = N_EXTREMES // 2
    for column, title in ((middle, "least memorized"), (N_EXTREMES + 1 + middle, "most memorized")):
        text = panels[0][column].annotate(
            title, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points", ha="center",
            fontsize=12,
        )  # fmt: skip
        text.set_in_layout(False)  # it may reach over its neighbours
    figure.get_layout_engine().set(rect=(0.03, 0, 0.97, 0.97))
    save(figure, path)


def pairs(data: StudyData, content: dict[str, NDArray[Any]], path: Path) -> None:
    """The strongest pairs of a training image and the test image that it helps most."""
    influence, origin = content["influence"][:, 0], content["influence_from"][:, 0]
    row_of = {position: row for row, position in enumerate(data.index.tolist())}
    strongest = strongest_pairs(influence, origin)
    figure = canvas(1.15 * N_PAIRS, 3.1)
    panels = figure.subplots(2, len(strongest), squeeze=False)
    for (above, below), j in zip(panels.T, strongest, strict=True):
        i = row_of[int(origin[j])]
        show(above, data.images[i].cpu().numpy(), f"label {data.class_names[data.labels[i]]}")
        show(below, data.test_images[j].cpu().numpy(), f"label {data.class_names[data.test_labels[j]]}")
        below.text(
            0.5, -0.12, f"infl {influence[j]:.2f}", transform=below.transAxes, ha="center", va="top",
            fontsize=9,
        )  # fmt: skip
    for axes, name in zip(panels[:, 0], ("train", "test"), strict=True):
        axes.text(-0.15, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=11)
    save(figure, path)


def strongest_pairs(influence: NDArray[np.float64], origin: NDArray[np.int64]) -> list[int]:
    """The test examples that are helped most, at most one for each training example in `origin` (M,)."""
    chosen: dict[int, int] = {}  # training example → its most helped test example
    for j in np.argsort(-influence, kind="stable"):
        chosen.setdefault(int(origin[j]), int(j))
    return list(chosen.values())[:N_PAIRS]


def caption(score: float) -> str:
    """The score with two decimals, without a minus before zero."""
    return f"{score:.2f}".replace("-0.00", "0.00")


def show(axes: Axes, image: NDArray[np.uint8], title: str) -> None:
    """Draw an image (C, H, W) uint8 with a caption."""
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    else:
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=8, pad=2)
