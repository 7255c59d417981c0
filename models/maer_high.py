"""maer with a protected tail: a tenth of the memory keeps the most memorized samples for good.

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.3, official code `maer_high`: besides what
`--buffer_policy` chooses, the most memorized samples of each class stay in a part of the memory that the
reservoir cannot touch, `--longtail_fraction` of it when all classes have been learned.
Differs from the paper's code: the tail is a mark on places of one memory, not a second one, so the size
holds at any time; a share of less than one sample per class is given to the first classes (there an
error); as in `maer` for the rest.
"""

from dataclasses import dataclass

import torch

from engram.models import maer
from engram.models.parts.memorization import MemorizationOptions, MemorizationSelector, replace_task_samples
from engram.models.parts.replay import store
from engram.utils.buffers import selection
from engram.utils.buffers.weighted_reservoirs import ProtectedBuffer
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(MemorizationOptions):
    """Flags of maer_high."""

    longtail_fraction: float = option(0.1, "share of the memory that is the protected tail", ge=0, lt=1)


class MAERHigh(maer.MAER):
    """maer; at the end of a task the most memorized samples of each class are marked."""

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        n_classes, draws = setup.benchmark.n_classes, setup.generator("buffer")
        self.buffer = ProtectedBuffer(options.buffer_size, n_classes, draws, self.device)
        self.chooser = MemorizationSelector(self, self.choose)
        tail, masks = (
            round(options.longtail_fraction * options.buffer_size),
            setup.benchmark.class_masks.cpu(),
        )
        self.tail = torch.zeros(masks.shape, dtype=torch.long)  # (T, C) places of each task's class
        self.tail[masks] = torch.tensor(selection.quotas(tail, int(masks.sum())))
        self.marked: list[torch.Tensor] = []

    def after_step(self, batch):
        """Reservoir update; newcomers are not protected."""
        store(self, batch, protected=torch.zeros_like(batch.y, dtype=torch.bool))

    def choose(self, ranking, k, weights):
        """Of a class's ranking: the tail from its end, the policy's choice of what lies before."""
        label = self.setup.benchmark.train(self.task).y[ranking[0]].item()
        high = min(self.tail[self.task.id, label].item(), k, len(ranking))
        lower, upper = ranking[: len(ranking) - high], ranking[len(ranking) - high :]
        self.marked.append(upper)
        policy, draws = self.options.buffer_policy, self.chooser.draws
        kept = selection.pick(lower, k - high, policy, weights[: len(lower)], draws)
        return torch.cat((upper, kept))

    def end_task(self, task):
        """maer's; then mark the tail."""
        self.marked = []
        replace_task_samples(self, task, self.chooser, protected=self.protect)
        self.marked = []

    def protect(self, chosen):
        """(k,) whether each of the samples chosen is of the tail."""
        index = self.setup.benchmark.train(self.task).index
        return torch.isin(chosen.index, index[torch.cat([chosen.index[:0], *self.marked])])
