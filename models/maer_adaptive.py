"""maer whose share of hard samples grows with the memory: easy samples first, then hard ones too.

Source: new here, after the trend in Kozal et al. 2025 (arXiv 2505.17664, figure 5: CIFAR-100): the least
memorized samples are best in small memories, a tenth of highly memorized ones gains at a fifth of the data,
the most memorized are as good as any at three fifths. With k slots for a class of n samples, round(k ·
h · k/n) go to the most memorized, h being `--hard_share`, and the others to the least memorized.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.models import maer
from engram.models.parts.memorization import ProxyOptions
from engram.utils.buffers.selection import Policy
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ProxyOptions):
    """These are the flags of maer_adaptive."""

    hard_share: float = option(
        0.5, "share of the most memorized samples as the memory nears the size of the data", ge=0, le=1
    )


class MAERAdaptive(maer.MAER):
    """maer with its own policy."""

    options: Options

    def policy(self) -> Policy:
        """Its own choice of both ends in place of `--buffer_policy`."""
        return self.choose

    def choose(self, ranking: Tensor, k: int, weights: Tensor) -> Tensor:
        """Of a class's ranking (n,), lowest memorization first, k samples from both ends."""
        n = len(ranking)
        k = min(k, n)
        hard = round(self.options.hard_share * k * k / n) if n else 0
        return torch.cat((ranking[: k - hard], ranking[n - hard :]))
