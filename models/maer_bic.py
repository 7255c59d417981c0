"""BiC whose exemplars are chosen by memorization rather than herded (maer_bic).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_bic`: BiC (see `bic`), its
exemplars of a class those that `--buffer_policy` takes, see `maer`. When classes have to give up slots, the
exemplars most typical of the policy stay: the lowest, the highest, the most central.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.datasets.benchmark import Samples, Task
from engram.models import bic
from engram.models.parts.memorization import MemorizationOptions, WatchedReplay, ranked
from engram.utils.buffers import selection


@dataclass(frozen=True)
class Options(bic.Options, MemorizationOptions):
    """These are the flags of maer_bic."""


class MAERBiC(WatchedReplay, bic.BiC):
    """BiC whose exemplars are those that the policy chooses."""

    options: Options

    def end_task(self, task: Task) -> None:
        """BiC's, which calls `renew`: the samples that the policy chooses are its exemplars."""
        bic.BiC.end_task(self, task)

    def renew(self, task: Task) -> None:
        """Each of the task's classes keeps what the policy takes of its ranking."""
        samples, n_old = self.task_samples(task), len(self.buffer)
        memorization = self.chooser.memorization(Samples(*self.benchmark.train(task)), task)
        policy = self.options.buffer_policy

        def choose(rows: Tensor, k: int) -> Tensor:
            candidates = rows - n_old
            ranking = candidates[ranked(memorization[candidates])]
            weights = memorization[ranking] - memorization[ranking[:1]].clamp_max(0).sum()
            chosen = selection.pick(ranking, k, policy, weights, self.chooser.draws)
            return n_old + typical_first(chosen, policy)

        self.buffer.renew(task.id, choose, **samples)


def typical_first(chosen: Tensor, policy: str) -> Tensor:
    """The samples chosen (k,), in ascending memorization, in the order in which they are to be kept."""
    if policy in ("max", "0.9max"):
        return chosen.flip(0)
    if policy == "middle":
        rank = torch.arange(len(chosen), device=chosen.device)
        return chosen[(2 * rank - len(chosen) + 1).abs().argsort(stable=True)]
    return chosen
