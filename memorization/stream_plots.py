"""Figures of in-stream memorization: how the memorization of a task's examples decays."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engram.memorization.estimator import memorization
from engram.utils.figure_files import canvas
from engram.utils.metrics.statistics import standard_deviation

GROUPS = {"high (above .25)": "tab:red", "mid (.1 to .25)": "tab:orange", "low (up to .1)": "tab:blue"}
Arrays = dict[str, NDArray[Any]]


class View(NamedTuple):
    """Among which classes probabilities are taken, and the arrays of a file that hold them."""

    title: str
    prefix: str
    losses: str


VIEWS = (View("class-IL", "", "loss_over_time"), View("task-IL", "task_il_", "task_loss_over_time"))


def decay(content: Arrays) -> Figure:
    """A row for each view; left: mean memorization of each task over time, right: by age and memorization.

    Files of before hold the losses of the class-IL view alone, for the right panel.
    """
    views = [view for view in VIEWS if f"{view.prefix}in_stream" in content]
    figure = canvas(13.6, 4.6 * len(views))
    for view, (left, right) in zip(views, figure.subplots(len(views), 2, squeeze=False), strict=True):
        by_task(left, content[f"{view.prefix}in_stream"], content["task"])
        left.set_title(f"{view.title}: {left.get_title()}", fontsize=11)
        if {view.losses, "member"} <= content.keys():
            by_memorization(right, content, view)
        else:
            right.set_visible(False)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.axhline(0, color="0.5", linewidth=0.8)
    return figure


def by_task(axes: Axes, scores: NDArray[np.float64], task: NDArray[np.int64]) -> None:
    """A line for the examples of each task: their mean score after it and after every later task."""
    n_tasks = len(scores)
    for s in range(n_tasks):
        values = scores[s:, task == s]
        values = values[:, np.isfinite(values[0])]
        if not values.size:
            axes.plot([], label=f"task {s}: not measured")
            continue
        error = standard_deviation(values, axis=1) / np.sqrt(values.shape[1])
        times = range(s, n_tasks)
        axes.errorbar(times, values.mean(1), error, marker="o", markersize=4, capsize=2, label=f"task {s}")
    title = "examples of each task\n(± standard error over examples, all by the same networks)"
    axes.set(xlabel="after task", ylabel="mean memorization", title=title)
    axes.set_xticks(range(n_tasks))
    axes.legend(frameon=False, fontsize=9)


def by_memorization(axes: Axes, content: Arrays, view: View) -> None:
    """Lines for examples that were memorized much, somewhat and little when they were learned."""
    curves = by_group(content[view.losses], content["member"], content["task"])
    for colour, name, (scores, seen, left_out) in zip(GROUPS.values(), GROUPS, curves, strict=True):
        axes.plot(scores, color=colour, marker="o", markersize=4, label=name)
        axes.plot(seen, color=colour, marker="s", markersize=3, linestyle="--", linewidth=1)
        axes.plot(left_out, color=colour, marker="^", markersize=3, linestyle=":", linewidth=1)
    axes.plot([], color="0.4", marker="s", markersize=3, linestyle="--", label="probability, seen")
    axes.plot([], color="0.4", marker="^", markersize=3, linestyle=":", label="probability, left out")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    axes.set(
        xlabel="tasks since learned", ylabel="memorization (solid), probability",
        title=f"{view.title}: by memorization when learned",
    )  # fmt: skip
    axes.set_xticks(range(len(content["in_stream"])))


def by_group(
    loss: NDArray[np.float32], member: NDArray[np.bool_], task: NDArray[np.int64],
    thresholds: tuple[float, float] = (0.1, 0.25),
) -> NDArray[np.float64]:  # fmt: skip
    """(3 groups, 3, T) means by age: memorization, and the probabilities of networks that saw and did not.

    Groups are formed by one half of the networks and measured by the other, both ways round: measured by
    the same networks, the most memorized would fall back by selection alone.
    """
    values, n_tasks = np.exp(-loss.astype(np.float64)), len(loss)
    sums, counts = np.zeros((3, 3, n_tasks)), np.zeros((3, n_tasks))
    half = np.arange(member.shape[0]) % 2 == 0
    for forming, measuring in ((half, ~half), (~half, half)):
        first = scores_when_learned(values, member, task, forming)
        low, high = thresholds
        group = np.where(first > high, 0, np.where(first > low, 1, 2))
        group[np.isnan(first)] = -1  # this half of the networks has not measured it
        for t in range(n_tasks):
            met = task <= t
            estimate = memorization(values[t][np.ix_(measuring, met)], member[np.ix_(measuring, met)])
            fields = np.stack([estimate.scores, estimate.mean_in, estimate.mean_out])
            for g in range(3):
                for age in range(t + 1):
                    chosen = (group[met] == g) & (t - task[met] == age) & np.isfinite(estimate.scores)
                    sums[g, :, age] += fields[:, chosen].sum(1)
                    counts[g, age] += chosen.sum()
    with np.errstate(invalid="ignore"):
        return sums / counts[:, None]


def scores_when_learned(
    values: NDArray[np.float64],
    member: NDArray[np.bool_],
    task: NDArray[np.int64],
    networks: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(n,) memorization of each example right after its own task, by the chosen `networks` (R,)."""
    scores = np.full(len(task), np.nan)
    for s in range(len(values)):
        rows = np.ix_(networks, task == s)
        scores[task == s] = memorization(values[s][rows], member[rows]).scores
    return scores
