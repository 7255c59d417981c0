"""DER++: Dark Experience Replay that also replays labels.

Source: Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline"
(arXiv 2004.07211), Algorithm 2: L = CE(stream) + α · MSE(h(x'), z') + β · CE(h(x''), y''), with two
independent draws from the memory. What is stored, and what differs from the paper: see `der`.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.models import der
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(der.Options):
    """These are the flags of DER++."""

    beta: float = option(0.5, "weight β of the cross-entropy on replayed labels", ge=0)


class DERpp(der.DER):
    """DER's loss plus the labels of a second draw; the memory is DER's."""

    options: Options
    eager_step = ""

    def loss(self, batch: Batch) -> Tensor:
        """CE(stream) + α MSE(h(x'), z') + β CE(h(x''), y''), with two independent draws ' and ''."""
        if not self.buffer:
            return self.stream_loss(batch, *self.separate_passes(batch))
        first, second = (self.buffer.sample(self.n_replayed) for _ in range(2))
        replayed = [self.augmented(sample) for sample in (first, second)]
        outputs, first_outputs, second_outputs = self.separate_passes(batch, *replayed)
        second_outputs = self.mask_classes(second_outputs, second["task_id"])
        return (
            self.stream_loss(batch, outputs)
            + self.options.alpha * self.logit_distance(first_outputs, first["logits"], first["task_id"])
            + self.options.beta * F.cross_entropy(second_outputs, second["y"])
        )
