"""Metrics: pure functions of the accuracy matrix.

R[i, j] is the test accuracy on task j after training task i, zero-based, a fraction in [0, 1], NaN
where not evaluated; T tasks. b[j] is the accuracy of the untrained network. A metric is NaN where a
number it needs was not measured.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Evaluations in time order, each (task in training or just finished, (T,) accuracies, NaN for unseen tasks).
Curve = Sequence[tuple[int, NDArray[np.float64]]]


def _matrix(R: ArrayLike) -> NDArray[np.float64]:
    """R as a square matrix; raises `ValueError` for any other shape."""
    R = np.asarray(R, dtype=np.float64)
    if R.ndim != 2 or R.shape[0] != R.shape[1]:
        raise ValueError(f"R must be a square matrix (tasks x tasks), got shape {R.shape}")
    return R


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of (n,) values, NaN without any."""
    return float(values.mean()) if len(values) else float("nan")


def of_learned_tasks(R: ArrayLike, scenario: str) -> NDArray[np.float64]:
    """R (T, T) as pictures show it: NaN where task j comes after task i, which was just learned.

    In class-IL a network cannot name the classes of a later task, so that R has zeros there; in task-IL it
    guesses among classes that it was never trained on. In domain-IL tasks share their classes, and what a
    network makes of later tasks is kept. R itself keeps all numbers: forward transfer is made of them.
    """
    R = _matrix(R)
    return R if scenario == "domain-il" else np.where(np.tri(len(R), dtype=bool), R, np.nan)


def average_accuracy(R: ArrayLike) -> float:
    """A = mean_j R[T-1, j]. Lopez-Paz & Ranzato 2017 (ACC), eq. 2; MER's retained accuracy RA."""
    return _mean(_matrix(R)[-1])


def learning_accuracy(R: ArrayLike) -> float:
    """LA = mean_j R[j, j]. Riemer et al. 2019."""
    return _mean(np.diag(_matrix(R)))


def backward_transfer(R: ArrayLike) -> float:
    """BWT = mean_{j<T-1} (R[T-1, j] − R[j, j]). Lopez-Paz & Ranzato 2017, eq. 3."""
    R = _matrix(R)
    return _mean((R[-1] - np.diag(R))[:-1])


def retained_minus_learned(R: ArrayLike) -> float:
    """BTI = RA − LA, over all T tasks. Riemer et al. 2019 ("backward transfer and interference")."""
    return average_accuracy(R) - learning_accuracy(R)


def forward_transfer(R: ArrayLike, b: ArrayLike) -> float:
    """FWT = mean_{j>0} (R[j-1, j] − b[j]). Lopez-Paz & Ranzato 2017, eq. 4.

    Meaningful only where an unseen task's classes may be predicted: task-IL and domain-IL.
    """
    R, b = _matrix(R), np.asarray(b, dtype=np.float64)
    return _mean(np.diag(R, k=1) - b[1:])


def forgetting(R: ArrayLike) -> float:
    """F = mean_{j<T-1} (max_{i<T-1} R[i, j] − R[T-1, j]); negative when old tasks improve.

    Chaudhry et al. 2018 (RWalk), eq. 3; the maximum is over all rows before the last that were evaluated,
    those before task j was trained included: a network may know a task before its turn (task-IL, domain-IL).
    """
    return _mean(_drops(_matrix(R)))


def _drops(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T − 1,) for each task but the last: its best accuracy before the last task minus its final one."""
    return np.array([_best(R[:-1, j]) - R[-1, j] for j in range(len(R) - 1)])


def mean_known_forgetting(R: ArrayLike) -> float:
    """`forgetting` over the tasks where it is not NaN: a group of samples may be absent from some tasks."""
    drops = _drops(_matrix(R))
    return _mean(drops[~np.isnan(drops)])


def forgetting_over_tasks(R: ArrayLike) -> float:
    """FM = 1/T Σ_j (max_{i≥j} R[i, j] − R[T-1, j]), the maximum over rows from the task's own to the last.

    Kozal et al. 2025 (the memorization paper's tables).
    """
    R = _matrix(R)
    return _mean(np.array([_best(R[j:, j]) - R[-1, j] for j in range(len(R))]))


def average_incremental_accuracy(R: ArrayLike) -> float:
    """Mean over i of the average accuracy on the tasks seen so far, mean_{j<=i} R[i, j]. iCaRL 2017."""
    R = _matrix(R)
    return _mean(np.array([R[i, : i + 1].mean() for i in range(len(R))]))


def min_accuracy(curve: Curve) -> float:
    """min-ACC: mean over old tasks of the lowest accuracy at any evaluation after the task was learned.

    De Lange et al. 2023 (ContinualEvaluation), eq. 2. Old tasks are all but the last one trained.
    """
    last = curve[-1][0]
    lowest = [[acc[j] for task, acc in curve if task > j] for j in range(last)]
    return _mean(np.array([np.min(values) for values in lowest]))  # NaN where one of the values is


def worst_case_accuracy(curve: Curve) -> float:
    """WC-ACC = A_k / k + (1 − 1/k) min-ACC, k tasks seen, A_k the last task's accuracy now.

    De Lange et al. 2023, eq. 3.
    """
    last, accuracies = curve[-1]
    k = last + 1
    if k == 1:
        return float(accuracies[0])
    return float(accuracies[last] / k + (1 - 1 / k) * min_accuracy(curve))


def _best(values: NDArray[np.float64]) -> float:
    """Largest evaluated accuracy; NaN when none was, without a warning."""
    values = values[~np.isnan(values)]
    return float(values.max()) if len(values) else float("nan")


def summary(R: ArrayLike) -> dict[str, float]:
    """All metrics of one evaluation view that need R alone."""
    return {
        "average_accuracy": average_accuracy(R),
        "forgetting": forgetting(R),
        "fm": forgetting_over_tasks(R),
        "bwt": backward_transfer(R),
        "learning_accuracy": learning_accuracy(R),
        "bti": retained_minus_learned(R),
        "average_incremental_accuracy": average_incremental_accuracy(R),
    }
