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

from engram.models.method import Method
from engram.models.parts.replay import ReplayOptions, draw, passes, store
from engram.utils.buffers.reservoir import Buffer


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of ER-ACE: those of every replay method."""


class ERACE(Method):
    """Cross-entropy on the stream among its own and new classes, on the replay among all."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)
        self.seen = torch.zeros(setup.benchmark.n_classes, dtype=torch.bool, device=self.device)

    def loss(self, batch):
        """The sum of both cross-entropies."""
        replayed = draw(self)
        if replayed is None:
            return super().loss(batch)
        outputs = passes(self, batch, replayed)
        new, old = (self.own_logits(z, b.task_id) for z, b in zip(outputs, (batch, replayed), strict=True))
        stream = F.cross_entropy(new.masked_fill(self.absent(batch.y), -torch.inf), batch.y)
        return stream + F.cross_entropy(old, replayed.y)

    def absent(self, y: torch.Tensor) -> torch.Tensor:
        """(C,) classes that were met before and are not in the batch."""
        return self.seen.index_fill(0, y, False)

    def after_step(self, batch):
        """Reservoir update."""
        self.seen = self.seen.index_fill(0, batch.y, True)
        store(self, batch)
