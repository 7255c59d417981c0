"""Figures of scores: histogram, standard errors against the number of networks, proxies against scores."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from engram.memorization.agreement import MEASURES, strongest_first, varies
from engram.memorization.estimator import memorization
from engram.utils import scores as score_files
from engram.utils.errors import UserError
from engram.utils.figure_files import canvas

Arrays = dict[str, NDArray[Any]]
THRESHOLDS = (0.1, 0.25)
BINS = np.arange(-0.15, 1.0501, 0.05)
PER_ROW = 4
SIZES = (8, 16, 32, 64, 128, 256, 512)  # numbers of networks whose errors are shown
# First digits of tick marks, coarse to fine; at least MIN_TICKS are shown.
FIRST_DIGITS = (
    (1, 2, 5), (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
)  # fmt: skip
MIN_TICKS = 3


def histogram(files: dict[str, NDArray[np.float64]]) -> Figure:
    """Shares of measured examples by score, a line a file, its mean and share above .25 in the legend."""
    figure = canvas(8.0, 4.6)
    axes = figure.add_subplot()
    for i, (name, values) in enumerate(files.items()):
        scores = values[np.isfinite(values)]
        share, _ = np.histogram(np.clip(scores, BINS[0], BINS[-1]), BINS)
        label = f"{name}: mean {scores.mean():.3f}, {100 * (scores > 0.25).mean():.1f} % above .25"
        percent = 100 * share / len(scores)
        axes.stairs(percent, BINS, fill=len(files) == 1, color=f"C{i}", label=label, linewidth=1.6)
    for threshold in THRESHOLDS:
        axes.axvline(threshold, color="0.4", linestyle="--", linewidth=0.9)
        axes.text(threshold + 0.005, 60, f"{threshold:g}", color="0.3", fontsize=9)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 3, 10, 30, 100], ["0", "1", "3", "10", "30", "100"])
    axes.set_ylim(0, 100)
    axes.set(xlabel="memorization score", ylabel="examples (%)", title="How memorization is distributed")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", frameon=True, fontsize=9)
    return figure


def errors_by_size(
    loss: NDArray[np.float32], member: NDArray[np.bool_], seed: int = 0
) -> dict[int, tuple[float, float]]:
    """Mean standard error, and the error actually made between two studies, by the number of networks.

    Networks are drawn from those there are. The second number is the root mean square difference of the
    scores by two disjoint sets of networks, over √2.
    """
    values, rng = np.exp(-loss.astype(np.float64)), np.random.default_rng(seed)
    errors = {}
    for size in (size for size in SIZES if 2 * size <= len(values)):
        claimed, made = [], []
        for _ in range(5):
            order = rng.permutation(len(values))[: 2 * size]
            one, two = (memorization(values[half], member[half]) for half in np.split(order, 2))
            claimed.append(np.sqrt(np.nanmean(one.stderr**2)))
            made.append(np.sqrt(np.nanmean((one.scores - two.scores) ** 2) / 2))
        errors[size] = (float(np.mean(claimed)), float(np.mean(made)))
    return errors


def standard_errors(errors: dict[int, tuple[float, float]]) -> Figure:
    """The errors that `errors_by_size` returned, against the number of networks, and the law 1/√R."""
    sizes = list(errors)
    figure = canvas(6.4, 4.4)
    axes = figure.add_subplot()
    claimed, made = np.array(list(errors.values())).T
    expected = claimed[0] * np.sqrt(sizes[0] / np.array(sizes))
    axes.plot(sizes, claimed, marker="o", label="standard error (root mean square)")
    axes.plot(sizes, made, marker="s", linestyle="none", color="C1", label="difference of two studies / √2")
    axes.plot(sizes, expected, color="0.5", linestyle="--", label="∝ 1/√R")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    lowest, highest = min(claimed.min(), made.min()), max(claimed.max(), made.max())
    bottom, top = lowest / 1.3, highest * 1.3
    ticks = nice_ticks(bottom, top)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom, top)
    axes.minorticks_off()
    axes.set(xlabel="networks R", ylabel="error of a score", title="Errors shrink as 1/√R")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def nice_ticks(bottom: float, top: float) -> list[float]:
    """Round numbers in the interval, `MIN_TICKS` at least where its top is 1.69 times its bottom or more."""
    ticks: list[float] = []
    for digits in FIRST_DIGITS:
        candidates = [float(f"{digit}e{power}") for power in range(-6, 2) for digit in digits]
        ticks = [tick for tick in candidates if bottom <= tick <= top]
        if len(ticks) >= MIN_TICKS:
            break
    return ticks


def scatter(scores: NDArray[np.float64], proxies: dict[str, NDArray[np.float64]]) -> Figure:
    """Each proxy's rank against the score, best Spearman correlation first; red: median score by tenth."""
    rated = {
        name: MEASURES["spearman"](scores, values) if varies(values) else np.nan
        for name, values in proxies.items()
    }
    names = sorted(rated, key=lambda name: strongest_first(rated[name]))
    n_rows = -(-len(names) // PER_ROW)
    figure = canvas(2.7 * PER_ROW, 2.7 * n_rows + 0.5)
    panels = figure.subplots(n_rows, PER_ROW, squeeze=False, sharey=True)
    for axes, name in zip(panels.flat, names, strict=False):
        rank = stats.rankdata(proxies[name]) / len(scores)
        axes.plot(100 * rank, scores, ".", markersize=2, alpha=min(1.0, 600 / len(scores)), color="tab:blue")
        tenth = np.minimum((10 * rank).astype(int), 9)
        middle = [np.median(scores[tenth == k]) if (tenth == k).any() else np.nan for k in range(10)]
        (line,) = axes.plot(
            5 + 10 * np.arange(10), middle, color="tab:red", marker="o", markersize=3, linewidth=1.2
        )
        axes.set_xlim(-3, 103)
        axes.set_title(f"{name.replace('_', ' ')}\nSpearman {rated[name]:.2f}", fontsize=10)
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    label = "median score of each tenth of the ranks"
    figure.legend([line], [label], loc="outside upper center", frameon=False)
    figure.supxlabel("rank of the proxy (%)", fontsize=11)
    figure.supylabel("memorization score", fontsize=11)
    return figure


def draw_all(contents: dict[str, Arrays], proxies: Arrays | None) -> dict[str, Figure]:
    """The figures that the files allow, by name; the first score file is the main one."""
    drawn = {"histogram": histogram({name: content["scores"] for name, content in contents.items()})}
    main = next(iter(contents.values()))
    if {"loss", "member"} <= main.keys() and len(main["loss"]) >= 16:
        drawn["standard_errors"] = standard_errors(errors_by_size(main["loss"], main["member"]))
    if proxies:
        score_files.refuse_other_order((main, proxies), "--proxies")
        n = len(main["scores"])
        if "index" not in main and n != int(proxies.get("n_train", n)):
            raise UserError(
                f"--proxies: {n:,} scores without positions beside proxies of {int(proxies['n_train']):,} "
                "examples: give a .npz, or compare them by memorization.correlate --dataset_size"
            )
        index = main.get("index", np.arange(n))
        _, rows, proxy_rows = np.intersect1d(index, proxies["index"], return_indices=True)
        measured = np.isfinite(main["scores"][rows])
        rows, proxy_rows = rows[measured], proxy_rows[measured]
        named = zip(map(str, proxies["names"]), proxies["proxies"], strict=True)
        drawn["proxies"] = scatter(main["scores"][rows], {name: values[proxy_rows] for name, values in named})
    return drawn
