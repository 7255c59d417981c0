"""Galleries: the most and least memorized images of each class; pairs of training and test images."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.memorization.study_data import StudyData
from engram.utils.figure_files import canvas, save

EACH = 8  # images at either end
MAX_CLASSES = 10
PAIRS = 12


def extremes(pool: StudyData, scores: NDArray, path: Path) -> None:
    """A row for each class (the first ten): least memorized on the left, most memorized on the right."""
    labels, images = pool.labels.cpu().numpy(), pool.images.cpu().numpy()
    classes = np.unique(labels)[:MAX_CLASSES]
    figure = canvas(14.0, 0.98 * len(classes) + 0.7)
    panels = figure.subplots(
        len(classes), 2 * EACH + 1, squeeze=False, width_ratios=[1.0] * EACH + [0.35] + [1.0] * EACH
    )
    for row, label in zip(panels, classes, strict=True):
        mine = np.flatnonzero(labels == label)
        order = mine[np.argsort(scores[mine], kind="stable")]
        k = min(EACH, len(order))
        for axes in row:
            axes.set_axis_off()
        for axes, i in zip(row[:k], order[:k], strict=True):
            show(axes, images[i], caption(scores[i]))
        for axes, i in zip(row[len(row) - k :], order[::-1][:k], strict=True):
            show(axes, images[i], caption(scores[i]))
        name = str(pool.class_names[label])
        row[0].text(-0.18, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=10)
    for place, title in ((EACH // 2, "least memorized"), (EACH + 1 + EACH // 2, "most memorized")):
        words = panels[0][place].annotate(
            title,
            (0, 1),
            (0, 22),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=12,
        )
        words.set_in_layout(False)  # it may reach over its neighbours
    figure.get_layout_engine().set(rect=(0.03, 0, 0.97, 0.97))
    save(figure, path)


def pairs(pool: StudyData, content: dict[str, Any], path: Path) -> None:
    """The strongest pairs of a training image and the test image that it helps most."""
    influence, origin = content["influence"][:, 0], content["influence_from"][:, 0]
    place = {position: row for row, position in enumerate(pool.index.tolist())}
    order, seen = [], set()
    for j in np.argsort(-influence, kind="stable"):
        if origin[j] not in seen:
            seen.add(origin[j])
            order.append(j)
    order = order[:PAIRS]
    figure = canvas(1.15 * PAIRS, 3.1)
    panels = figure.subplots(2, len(order), squeeze=False)
    for (above, below), j in zip(panels.T, order, strict=True):
        i = place[int(origin[j])]
        show(above, pool.images[i].cpu().numpy(), f"label {pool.class_names[pool.labels[i]]}")
        show(below, pool.test_images[j].cpu().numpy(), f"label {pool.class_names[pool.test_labels[j]]}")
        below.text(
            0.5,
            -0.12,
            f"infl {influence[j]:.2f}",
            transform=below.transAxes,
            ha="center",
            va="top",
            fontsize=9,
        )
    for axes, name in zip(panels[:, 0], ("train", "test"), strict=True):
        axes.text(-0.15, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=11)
    save(figure, path)


def caption(score: float) -> str:
    """Two decimals, without a minus before nothing."""
    return f"{score:.2f}".replace("-0.00", "0.00")


def show(axes: Any, image: NDArray, title: str) -> None:
    """An image (C, H, W) uint8 with a caption."""
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    else:
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=8, pad=2)
