"""Galleries: the most and least memorized images of each class; pairs of training and test images."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engram.memorization.study_data import StudyData
from engram.utils.figure_files import canvas

Arrays = dict[str, NDArray[Any]]
N_EXTREMES = 8  # images at either end
MAX_CLASSES = 10
N_PAIRS = 12


def extremes(data: StudyData, content: Arrays, n_networks: int | None = None) -> Figure:
    """A row for each class (the first ten): least memorized on the left, most memorized on the right.

    content: `scores` (n,) of the data's examples, of which those without a number are not shown, and, where
    the file has them, standard errors `stderr`.
    """
    scores, errors = content["scores"], content.get("stderr")
    labels, images = data.labels.cpu().numpy(), data.images.cpu().numpy()
    classes = np.unique(labels)[:MAX_CLASSES]
    figure = canvas(14.0, 0.98 * len(classes) + 1.2)
    widths = [1.0] * N_EXTREMES + [0.35] + [1.0] * N_EXTREMES
    panels = figure.subplots(len(classes), len(widths), squeeze=False, width_ratios=widths)
    for row, label in zip(panels, classes, strict=True):
        members = np.flatnonzero((labels == label) & np.isfinite(scores))
        order = members[np.argsort(scores[members], kind="stable")]
        k = min(N_EXTREMES, len(order))
        for axes in row:
            axes.set_axis_off()
        for axes, i in zip(row[:k], order[:k], strict=True):
            show(axes, images[i], caption(scores[i], None if errors is None else errors[i]))
        for axes, i in zip(row[len(row) - k :], order[::-1][:k], strict=True):
            show(axes, images[i], caption(scores[i], None if errors is None else errors[i]))
        name = str(data.class_names[label])
        row[0].text(-0.18, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=10)
    middle = N_EXTREMES // 2
    for column, title in ((middle, "least memorized"), (N_EXTREMES + 1 + middle, "most memorized")):
        text = panels[0][column].annotate(
            title, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points", ha="center",
            fontsize=12,
        )  # fmt: skip
        text.set_in_layout(False)  # it may reach over its neighbours
    figure.get_layout_engine().set(rect=(0.03, 0.05, 0.97, 0.92))
    figure.text(0.03, 0.01, noise_note(scores, errors, n_networks), fontsize=10)
    return figure


def noise_note(
    scores: NDArray[np.float64], errors: NDArray[np.float64] | None, n_networks: int | None
) -> str:
    """A sentence that says how noisy the scores (n,) are, which were also used to choose what is shown.

    The share of noise is the mean squared standard error over the variance of the scores: 1 − their
    reliability. It is above 1 only by chance, where the scores differ by nothing but noise.
    """
    scores = scores[np.isfinite(scores)]
    if errors is None:
        return "The file holds no standard errors: how noisy these scores are is not known."
    share = min(1.0, float(np.nanmean(errors**2) / scores.var())) if scores.var() else 1.0
    networks = f" from {n_networks} networks" if n_networks else ""
    return (
        f"score ± standard error{networks}; median error of all {len(scores):,} examples "
        f"{np.nanmedian(errors):.3f}; {100 * share:.0f} % of the variance of the scores is noise.\n"
        "The ends are chosen by the same scores: the more noise, the more extreme they look than they are."
    )


def pairs(data: StudyData, content: Arrays) -> Figure:
    """The strongest pairs of a training image and the test image that it helps most."""
    influence, origin = content["influence"][:, 0], content["influence_from"][:, 0]
    errors = content["influence_stderr"][:, 0] if "influence_stderr" in content else None
    row_of = {position: row for row, position in enumerate(data.index.tolist())}
    strongest = strongest_pairs(influence, origin)
    figure = canvas(1.15 * N_PAIRS, 3.1)
    panels = figure.subplots(2, len(strongest), squeeze=False)
    for (above, below), j in zip(panels.T, strongest, strict=True):
        i = row_of[int(origin[j])]
        show(above, data.images[i].cpu().numpy(), f"label {data.class_names[data.labels[i]]}")
        show(below, data.test_images[j].cpu().numpy(), f"label {data.class_names[data.test_labels[j]]}")
        error = None if errors is None else errors[j]
        text = f"infl {caption(influence[j], error)}"
        below.text(0.5, -0.12, text, transform=below.transAxes, ha="center", va="top", fontsize=8)
    for axes, name in zip(panels[:, 0], ("train", "test"), strict=True):
        axes.text(-0.15, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=11)
    return figure


def strongest_pairs(influence: NDArray[np.float64], origin: NDArray[np.int64]) -> list[int]:
    """The test examples that are helped most, at most one for each training example in `origin` (M,)."""
    chosen: dict[int, int] = {}  # training example → its most helped test example
    for j in np.argsort(-influence, kind="stable"):
        chosen.setdefault(int(origin[j]), int(j))
    return list(chosen.values())[:N_PAIRS]


def caption(score: float, error: float | None = None) -> str:
    """The score with two decimals, without a minus before zero, and its standard error where it is known.

    With three where the error is below .01, which would else be shown as none.
    """
    digits = 3 if error is not None and error < 0.01 else 2
    text = f"{score:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return text + ("" if error is None else f" ± {error:.{digits}f}")


def show(axes: Axes, image: NDArray[np.uint8], title: str) -> None:
    """Draw an image (C, H, W) uint8 with a caption."""
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    else:
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=7.5, pad=2)
