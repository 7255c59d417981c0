"""Accuracy on training samples of high, middle and low memorization, task by task.

Source: Kozal et al. 2025 (arXiv 2505.17664), section 4: training images, clean view, split by a file of
scores; high: above the second threshold, low: up to the first.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.utils.batching import evaluation_chunk
from engram.utils.training.evaluation import masked_argmax
from engram.utils.training.ports import BatchT, Learner, TaskT

# Group → the paper's name for it in logged metrics.
NAMES = {"high": "longtail", "mid": "mid_mem", "low": "low_mem"}


def assign(scores: Tensor, thresholds: Sequence[float]) -> Tensor:
    """(N,) index in `NAMES` of each training sample's group; −1 where the score is unknown (NaN)."""
    low, high = thresholds
    group = torch.where(scores > high, 0, torch.where(scores > low, 1, 2))
    return group.masked_fill(scores.isnan(), -1)


@torch.no_grad()
def accuracies(
    method: Learner[TaskT, BatchT], n_seen: int, group: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n_seen, 3, 2) accuracy on each group of each of the first tasks; (3,) samples of each in all of these.

    The views are class-IL and task-IL as in `evaluation.accuracies`. NaN where a task has no sample of a
    group. One read from the device.
    """
    benchmark = method.setup.benchmark
    masks = benchmark.class_masks
    seen = masks[:n_seen].any(0)
    hits = torch.zeros(n_seen * len(NAMES), 3, dtype=torch.float64, device=benchmark.device)
    was_training = method.net.training
    method.net.eval()
    size = evaluation_chunk(method.net, benchmark.input_shape, benchmark.device)
    for raw, y, task_id, index in benchmark.train_chunks(n_seen, size):
        logits = method.predict(benchmark.augment.normalise(raw), task_id)
        views = (masked_argmax(logits, seen), masked_argmax(logits, masks[task_id]))
        sample_group = group[index]
        correct = torch.stack([*(view == y for view in views), torch.ones_like(y, dtype=torch.bool)], 1)
        row = task_id * len(NAMES) + sample_group.clamp_min(0)
        hits.index_add_(0, row, correct.double() * (sample_group >= 0).view(-1, 1))
    method.net.train(was_training)
    right, counts = hits.cpu().view(n_seen, len(NAMES), 3).split([2, 1], dim=2)
    sizes = counts.sum((0, 2)).long()
    return (right / counts).numpy(), sizes.numpy()  # 0/0 is NaN
