"""BiC whose exemplars are chosen by memorization rather than herded (maer_bic).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_bic`: BiC (see `bic`), its
exemplars of a class those that `--buffer_policy` takes, see `maer`. When classes have to give up slots, those
exemplars stay that the policy takes where there are so few: the lowest, the highest, the most central, any, a
mix.
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
            return n_old + best_first(ranking, k, policy, weights, self.chooser.draws)

        self.buffer.renew(task.id, choose, **samples)


def best_first(ranking: Tensor, k: int, policy: str, weights: Tensor, generator: torch.Generator) -> Tensor:
    """What `selection.pick` takes (k,), ordered so that the first m are what it takes for each m below k.

    Sizes of one draw nest: what is drawn first for k samples is drawn for m. Arguments as in `pick`.
    """
    rank, draws = torch.arange(len(ranking)), generator.get_state()
    least = torch.full_like(rank, len(ranking))  # size from which on a sample is among those taken
    for size in range(k, 0, -1):
        taken = selection.pick(rank, size, policy, weights, generator.set_state(draws))
        least[taken] = size
    chosen = selection.pick(rank, k, policy, weights, generator.set_state(draws))
    return ranking[chosen[least[chosen].argsort(stable=True)].to(ranking.device)]
