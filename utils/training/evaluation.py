"""Evaluation: one pass over the stacked test samples gives every task's accuracy in both views."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.utils.batching import evaluation_chunk
from engram.utils.metrics.measurements import MemoryCounts
from engram.utils.training.evaluation_subset import EvaluationSubset
from engram.utils.training.ports import BatchT, Learner, TaskT


@torch.no_grad()
def accuracies(
    method: Learner[TaskT, BatchT], n_tasks: int, n_seen: int, subset: EvaluationSubset | None = None
) -> Tensor:
    """Accuracy on each of the first `n_tasks` tasks, (n_tasks, 2) on the CPU: class-IL, task-IL.

    class-IL: argmax over the classes of the first `n_seen` tasks. task-IL: argmax over the classes
    of the sample's own task; where every task has all classes the two are one. The network is in
    eval mode meanwhile; one read from the device. With a subset only its samples count, and tasks
    without any have NaN.
    """
    benchmark = method.setup.benchmark
    masks = benchmark.class_masks
    one_view = all(len(task.classes) == benchmark.n_classes for task in benchmark.tasks)
    seen = masks[:n_seen].any(0) if n_seen else torch.ones_like(masks[0])
    hits = torch.zeros(n_tasks, 1 if one_view else 2, dtype=torch.float64, device=benchmark.device)
    for logits, y, task_id in _predictions(method, n_tasks, subset and subset.positions):
        if one_view:
            views = [logits.argmax(1)]
        else:
            views = [masked_argmax(logits, seen), masked_argmax(logits, masks[task_id])]
        hits.index_add_(0, task_id, torch.stack([view == y for view in views], 1).double())
    whole = torch.tensor([len(task.test_index) for task in benchmark.tasks])
    counts = subset.counts if subset else whole
    return hits.cpu().expand(-1, 2) / counts[:n_tasks].view(-1, 1)


@torch.no_grad()
def mean_loss(method: Learner[TaskT, BatchT], tasks: Sequence[int]) -> float:
    """Mean cross-entropy on the test samples of these tasks, among the classes of each sample's own."""
    masks, wanted = method.setup.benchmark.class_masks, torch.tensor(tasks)
    total, n = 0.0, 0
    for logits, y, task_id in _predictions(method, 1 + max(tasks)):
        rows = torch.isin(task_id, wanted.to(task_id.device))
        allowed = logits[rows].masked_fill(~masks[task_id[rows]], -torch.inf)
        total += F.cross_entropy(allowed.double(), y[rows], reduction="sum").item()
        n += int(rows.sum())
    return total / n


def _predictions(
    method: Learner[TaskT, BatchT], n_tasks: int, positions: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits, y, task_id) of the first `n_tasks` tasks' test samples, or of those at some positions.

    The network is in eval mode meanwhile.
    """
    benchmark = method.setup.benchmark
    was_training = method.net.training
    method.net.eval()
    size = evaluation_chunk(method.net, benchmark.input_shape, benchmark.device)
    for raw, y, task_id, _ in benchmark.test_chunks(n_tasks, size, positions):
        yield method.predict(benchmark.augment.normalise(raw), task_id), y, task_id
    method.net.train(was_training)


def memory_counts(method: Learner[TaskT, BatchT], task: int) -> MemoryCounts | None:
    """Samples of each class and each task that the method's memory holds after `task`; None without any."""
    stored, benchmark = method.stored_samples(), method.setup.benchmark
    if not {"y", "task_id"} <= stored.keys():
        return None
    per_class = stored["y"].bincount(minlength=benchmark.n_classes)
    per_task = stored["task_id"].bincount(minlength=len(benchmark.tasks))
    return MemoryCounts(task, per_class.tolist(), per_task.tolist())


def masked_argmax(logits: Tensor, allowed: Tensor) -> Tensor:
    """(N,) best class among the allowed ones; `allowed` is (C,) or (N, C) bool."""
    return logits.masked_fill(~allowed, -torch.inf).argmax(1)
