"""DER++: Dark Experience Replay that also replays labels.

Source: Buzzega et al. 2020, "Dark Experience for General Continual Learning: a Strong, Simple Baseline"
(arXiv 2004.07211), Algorithm 2: L = CE(stream) + α · MSE(h(x'), z') + β · CE(h(x''), y''), with two
independent draws from the memory. What is stored, and what differs from the paper: see `der`.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from engram.models import der
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(der.Options):
    """Flags of DER++."""

    beta: float = option(0.5, "weight β of the cross-entropy on replayed labels", ge=0)


class DERpp(der.DER):
    """DER's loss plus the labels of a second draw."""

    n_draws = 2

    def more(self, again, replayed):
        """β CE."""
        _, y, task_id = replayed[1]
        return self.options.beta * F.cross_entropy(self.own_logits(again[1], task_id), y)
