"""BiC whose exemplars are chosen by memorization rather than herded (maer_bic).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_bic`: BiC (see `bic`), its
exemplars of a class those that `--buffer_policy` takes, see `maer`. When classes have to give up places, the
exemplars most typical of the policy stay: the lowest, the highest, the most central.
"""

from dataclasses import dataclass

import torch

from engram.datasets.benchmark import Samples
from engram.models import bic
from engram.models.parts import exemplars
from engram.models.parts.memorization import (
    MemorizationOptions,
    MemorizationSelector,
    observe_watched,
    ranked,
)
from engram.utils.buffers import selection


@dataclass(frozen=True)
class Options(bic.Options, MemorizationOptions):
    """Flags of maer_bic."""


class MAERBiC(bic.BiC):
    """BiC, watched."""

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.chooser = MemorizationSelector(self, options.buffer_policy)

    def begin_task(self, task):
        """BiC's; memorization is the task's own."""
        super().begin_task(task)
        self.chooser.begin()

    def observe(self, batch):
        """BiC's step."""
        return observe_watched(self, batch, super().observe)

    def renew(self, task):
        """Exemplars of the task's classes by their rankings."""
        samples, n_old = exemplars.samples_of(self, task), len(self.buffer)
        memorization = self.chooser.memorization(self, Samples(*self.setup.benchmark.train(task)))
        policy = self.options.buffer_policy

        def choose(rows, k):
            own = rows - n_old
            ranking = own[ranked(memorization[own])]
            weights = memorization[ranking] - memorization[ranking[:1]].clamp_max(0).sum()
            chosen = selection.pick(ranking, k, policy, weights, self.chooser.draws)
            return n_old + typical_first(chosen, policy)

        self.buffer.renew(task.id, choose, **samples)


def typical_first(chosen: torch.Tensor, policy: str) -> torch.Tensor:
    """The samples chosen (k,), in ascending memorization, in the order in which they are to be kept."""
    if policy in ("max", "0.9max"):
        return chosen.flip(0)
    if policy == "middle":
        places = torch.arange(len(chosen), device=chosen.device)
        return chosen[(2 * places - len(chosen) + 1).abs().argsort(stable=True)]
    return chosen
