"""Noise ceilings: by how much two estimates of the same scores would correlate; what correlate ends with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram.memorization.agreement import MEASURES
from engram.memorization.estimator import split_half_reliability

Arrays = dict[str, NDArray[Any]]
Rows = NDArray[np.int64]
STORED = {"reliability": "Pearson", "reliability_spearman": "Spearman"}  # by eval_splits
NO_HALVES = "two halves of its networks do not correlate: train more of them, or its scores are all equal"


class Other(NamedTuple):
    """A file that the scores are compared with, and the rows of the examples that both have."""

    name: str
    content: Arrays
    rows: Rows  # of the scores' own file
    other_rows: Rows


def lines(content: Arrays, others: Sequence[Other]) -> list[str]:
    """Ceilings of the scores, once for each choice of rows; of a file beside them where those are unknown."""
    told: dict[bytes | str, str | None] = {}
    for other in others:
        own = other.rows.tobytes()
        if own not in told:
            told[own] = _line(content, other.rows, "")
        if told[own] is None:
            told[other.name] = _line(other.content, other.other_rows, f" of {other.name}")
    known = [line for line in told.values() if line is not None]
    return list(dict.fromkeys(known or [_unknown(content)]))


def _line(content: Arrays, rows: Rows, of: str) -> str | None:
    """By how much two estimates would correlate: over these rows, or over all where outputs are not kept.

    of: whose estimates, after "noise ceiling". None where it is unknown. The halves are those of eval_splits,
    so that the same examples give the number that stands in the file.
    """
    if _has_outputs(content):
        values, member = np.exp(-content["loss"][:, rows].astype(np.float64)), content["member"][:, rows]
        made = {
            name: split_half_reliability(values, member, MEASURES[name.lower()], np.random.default_rng(0))
            for name in STORED.values()
        }
        found = {name: r for name, r in made.items() if np.isfinite(r)}
        by, over = f"{len(values)} networks", f"{np.isfinite(content['scores'][rows]).sum():,} examples"
    elif found := _stored(content):
        by, over = "as many networks", f"all {len(content['scores']):,} examples of the file"
    if not found:
        return None
    parts = [f"{name} {r:z.3f} (proxies at most about {np.sqrt(max(r, 0)):.3f})" for name, r in found.items()]
    return (
        f"noise ceiling{of}: two independent estimates by {by} would correlate, over {over}, by "
        f"{', '.join(parts)}"
    )


def _has_outputs(content: Arrays) -> bool:
    return {"loss", "member"} <= content.keys()


def _stored(content: Arrays) -> dict[str, float]:
    """Measure → the reliability in a file; without those that are NaN, as of networks too few to halve."""
    found = {name: float(content[key]) for key, name in STORED.items() if key in content}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _unknown(content: Arrays) -> str:
    """A line that says which file would have told it, where neither the scores nor the other files do."""
    if _has_outputs(content) or STORED.keys() & content.keys():
        return f"noise ceiling: unknown; {NO_HALVES}"
    if "index" in content:
        return "noise ceiling: unknown; write the scores with eval_splits --store_probs"
    return (
        "noise ceiling: unknown, since a bare vector says nothing of its noise; of scores of your own, the "
        ".npz of eval_splits does"
    )
