"""maer with a protected tail: a tenth of the memory keeps the most memorized samples for good.

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.3, official code `maer_high`: besides what
`--buffer_policy` chooses, the most memorized samples of each class stay in a part of the memory that the
reservoir cannot touch, `--longtail_fraction` of it when all classes have been learned.
Differs from the paper's code: the tail is a mark on slots of one memory, not a second one, so the size
holds at any time; a share of less than one sample per class is given to the first classes (there an
error); as in `maer` for the rest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Samples, Task
from engram.models import maer
from engram.models.method import Setup
from engram.models.parts.memorization import MemorizationOptions
from engram.utils.buffers import selection
from engram.utils.buffers.weighted_reservoirs import ProtectedBuffer
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(MemorizationOptions):
    """These are the flags of maer_high."""

    longtail_fraction: float = option(0.1, "share of the memory that is the protected tail", ge=0, lt=1)


class MAERHigh(maer.MAER):
    """maer; at the end of a task the most memorized samples of each class are marked."""

    options: Options
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        tail, masks = (
            round(options.longtail_fraction * options.buffer_size),
            setup.benchmark.class_masks.cpu(),
        )
        self.tail = torch.zeros(masks.shape, dtype=torch.long)  # (T, C) slots of each task's class
        self.tail[masks] = torch.tensor(selection.quotas(tail, int(masks.sum())))
        self.marked: list[Tensor] = []

    def make_buffer(self) -> ProtectedBuffer:
        """A class-balanced reservoir that never evicts marked samples."""
        n_classes, draws = self.benchmark.n_classes, self.setup.generator("buffer")
        return ProtectedBuffer(self.options.buffer_size, n_classes, draws, self.device)

    def policy(self) -> selection.Policy:
        """`--buffer_policy` for what the tail leaves."""
        return self.choose

    def choose(self, ranking: Tensor, k: int, weights: Tensor) -> Tensor:
        """k of a class's ranking (n,): the tail from its end, the policy's choice of what lies before."""
        label = self.benchmark.train(self.task).y[ranking[0]].item()
        high = min(self.tail[self.task.id, label].item(), k, len(ranking))
        lower, upper = ranking[: len(ranking) - high], ranking[len(ranking) - high :]
        self.marked.append(upper)
        policy, draws = self.options.buffer_policy, self.chooser.draws
        return torch.cat((upper, selection.pick(lower, k - high, policy, weights[: len(lower)], draws)))

    def end_task(self, task: Task) -> None:
        """maer's, with the tail marked."""
        self.marked = []
        super().end_task(task)
        self.marked = []

    def extra_fields(self, chosen: Samples) -> dict[str, Tensor]:
        """(k,) whether each of the samples chosen is of the tail."""
        index = self.benchmark.train(self.task).index
        return {"protected": torch.isin(chosen.index, index[torch.cat([chosen.index[:0], *self.marked])])}
