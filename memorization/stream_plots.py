"""Figures of in-stream memorization: how the memorization of a task's examples decays."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.memorization.estimator import memorization
from engram.utils.figure_files import canvas, save

GROUPS = {"high (above .25)": "tab:red", "mid (.1 to .25)": "tab:orange", "low (up to .1)": "tab:blue"}


def decay(content: dict[str, Any], path: Path) -> None:
    """Left: mean memorization of each task over time; right: by age and how memorized examples were."""
    figure = canvas(13.6, 4.6)
    left, right = figure.subplots(1, 2)
    task, scores = content["task"], content["in_stream"]
    n_tasks = len(scores)
    for s in range(n_tasks):
        own = scores[s:, task == s]
        error = own.std(1, ddof=1) / np.sqrt(own.shape[1])
        left.errorbar(
            range(s, n_tasks), own.mean(1), error, marker="o", markersize=4, capsize=2, label=f"task {s}"
        )
    left.set(
        xlabel="after task", ylabel="mean memorization", title="examples of each task (± standard error)"
    )
    left.set_xticks(range(n_tasks))
    left.legend(frameon=False, fontsize=9)
    if {"loss_over_time", "member"} <= content.keys():
        curves = by_group(content["loss_over_time"], content["member"], task)
        for (name, colour), curve in zip(GROUPS.items(), curves, strict=True):
            right.plot(curve[0], color=colour, marker="o", markersize=4, label=name)
            right.plot(curve[1], color=colour, marker="s", markersize=3, linestyle="--", linewidth=1)
            right.plot(curve[2], color=colour, marker="^", markersize=3, linestyle=":", linewidth=1)
        right.plot([], color="0.4", marker="s", markersize=3, linestyle="--", label="probability, seen")
        right.plot([], color="0.4", marker="^", markersize=3, linestyle=":", label="probability, left out")
        right.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
        right.set(
            xlabel="tasks since learned",
            ylabel="memorization (solid), probability",
            title="by memorization when learned",
        )
        right.set_xticks(range(n_tasks))
    else:
        right.set_visible(False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.axhline(0, color="0.5", linewidth=0.8)
    save(figure, path)


def by_group(loss: NDArray, member: NDArray, task: NDArray, thresholds=(0.1, 0.25)) -> NDArray:
    """(3 groups, 3, T) means by age: memorization, and the probabilities of networks that saw and did not.

    Groups are formed by one half of the networks and measured by the other, both ways round: measured by
    the same networks, the most memorized would fall back by selection alone.
    """
    values, n_tasks = np.exp(-loss.astype(np.float64)), len(loss)
    sums, counts = np.zeros((3, 3, n_tasks)), np.zeros((3, n_tasks))
    halves = np.arange(member.shape[0]) % 2 == 0
    for forming, measuring in ((halves, ~halves), (~halves, halves)):
        first = np.full(len(task), np.nan)
        for s in range(n_tasks):
            own = task == s
            first[own] = memorization(values[s][np.ix_(forming, own)], member[np.ix_(forming, own)]).scores
        low, high = thresholds
        group = np.where(first > high, 0, np.where(first > low, 1, 2))
        for t in range(n_tasks):
            met = task <= t
            found = memorization(values[t][np.ix_(measuring, met)], member[np.ix_(measuring, met)])
            fields = np.stack([found.scores, found.mean_in, found.mean_out])
            for g in range(3):
                for age in range(t + 1):
                    chosen = (group[met] == g) & (t - task[met] == age) & np.isfinite(found.scores)
                    sums[g, :, age] += fields[:, chosen].sum(1)
                    counts[g, age] += chosen.sum()
    with np.errstate(invalid="ignore"):
        return sums / counts[:, None]
