"""ER with Asymmetric Cross-Entropy (ER-ACE): the stream does not push old classes down.

Source: Caccia et al. 2022, "New Insights on Reducing Abrupt Representation Change in Online Continual
Learning" (arXiv 2104.05025): L = CE(stream, over the classes of its batch only) + CE(replay, over
all classes); official code `er_ace`. As there, classes never met stay among the stream's too. The memory,
a reservoir, holds raw images. No task is needed: classes are those of the batch.
Differs from the official code: the last class met is masked like any old one when it is not in the batch
(there it never is); while the memory is empty the loss is plain cross-entropy. Differs from mammoth: it
masks and replays from the second task on. The classifier is linear, as in the paper; newer versions of
mammoth default to a cosine classifier scaled by 10.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.rehearsal import RehearsalMethod, ReplayOptions


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of ER-ACE: those of every replay method."""


class ERACE(RehearsalMethod):
    """Cross-entropy on the stream among its own and new classes, on the replay among all."""

    options: Options
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.seen = torch.zeros(setup.benchmark.n_classes, dtype=torch.bool, device=self.device)

    def loss(self, batch: Batch) -> Tensor:
        """CE(stream, among the classes of its batch and new ones) + CE(replay, among all classes)."""
        replayed = self.replay()
        if replayed is None:
            return F.cross_entropy(self.logits(batch.x, batch.task_id), batch.y)
        stream, memory = self.separate_passes(batch, replayed)
        stream = self.mask_classes(stream, batch.task_id).masked_fill(self.absent(batch.y), -torch.inf)
        memory = self.mask_classes(memory, replayed.task_id)
        return (
            F.cross_entropy(stream, batch.y)
            + F.cross_entropy(memory, replayed.y)
        )  # fmt: skip

    def absent(self, y: torch.Tensor) -> torch.Tensor:
        """(C,) classes that were met before and are not in the batch."""
        return self.seen.index_fill(0, y, False)

    def after_step(self, batch: Batch) -> None:
        """Note the classes met; offer the batch to the reservoir."""
        self.seen.index_fill_(0, batch.y, True)
        self.remember(batch)
