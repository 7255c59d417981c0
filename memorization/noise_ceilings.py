"""Noise ceilings: by how much two estimates of the same scores would correlate; what correlate ends with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.memorization.agreement import MEASURES
from engram.memorization.estimator import split_half_reliability

Arrays = dict[str, NDArray[Any]]
STORED = {"reliability": "Pearson", "reliability_spearman": "Spearman"}  # by eval_splits
TOO_FEW = "its networks are too few to halve, so train more (train_splits --n_repeats)"


def is_known(content: Arrays) -> bool:
    """Whether a file holds the outputs of networks, or a reliability that eval_splits could make of them."""
    return _has_outputs(content) or bool(_stored(content))


def line(content: Arrays, rows: NDArray[np.int64], of: str, rng: np.random.Generator) -> str:
    """By how much two estimates would correlate: over these rows, or over all where outputs are not kept.

    of: whose estimates, after "noise ceiling".
    """
    if _has_outputs(content):
        values, member = np.exp(-content["loss"][:, rows].astype(np.float64)), content["member"][:, rows]
        made = {
            name: split_half_reliability(values, member, MEASURES[name.lower()], rng)
            for name in STORED.values()
        }
        found = {name: r for name, r in made.items() if np.isfinite(r)}
        by, over = f"{len(values)} networks", f"{len(rows):,} examples"
    else:
        found = _stored(content)
        by, over = "as many networks", f"all {len(content['scores']):,} examples of the file"
    if not found:
        return f"noise ceiling{of}: unknown; {TOO_FEW}"
    parts = [f"{name} {r:.3f} (proxies at most about {np.sqrt(max(r, 0)):.3f})" for name, r in found.items()]
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


def unknown(content: Arrays) -> str:
    """A line that says which file would have told it, where neither the scores nor the other files do."""
    if STORED.keys() & content.keys():
        return f"noise ceiling: unknown; {TOO_FEW}"
    if "index" in content:
        return "noise ceiling: unknown; write the scores with eval_splits --store_probs"
    return (
        "noise ceiling: unknown, since a bare vector says nothing of its noise; of scores of your own, the "
        ".npz of eval_splits does"
    )
