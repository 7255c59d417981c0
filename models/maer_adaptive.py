"""maer whose share of hard samples grows with the memory (experimental: `maer min` in small memories).

Experimental: in the paper's main setting (CIFAR-100, 500 slots: 5 of each class's 500 samples) the rule
takes round(5 · .5 · 5/500) = 0 hard samples, so it is `maer --buffer_policy min`; and in no table of
RESULTS.md is it better than a balanced reservoir beyond chance (paired, p > .05).

Source: new here, after the trend in Kozal et al. 2025 (arXiv 2505.17664, figure 5: CIFAR-100): the least
memorized samples are best in small memories, a tenth of highly memorized ones gains at a fifth of the data,
the most memorized are as good as any at three fifths. With k slots for a class of n samples, round(k ·
h · k/n) go to the most memorized, h being `--hard_share`, and the others to the least memorized.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models import maer
from engram.models.method import Setup
from engram.models.parts.memorization import ProxyOptions
from engram.utils.buffers.selection import Policy
from engram.utils.config.options import option

NOTE = (
    "maer_adaptive is experimental: of {slots} slots a class ({n:,} samples each) {hard} are for the most "
    "memorized here; where it is 0, as with the paper's 500 slots on CIFAR-100, it is maer with policy min"
)


@dataclass(frozen=True)
class Options(ProxyOptions):
    """These are the flags of maer_adaptive."""

    hard_share: float = option(
        0.5, "share of the most memorized samples as the memory nears the size of the data", ge=0, le=1
    )


class MAERAdaptive(maer.MAER):
    """maer with its own policy."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        benchmark = setup.benchmark
        slots, n = options.buffer_size // benchmark.n_classes, benchmark.n_train // benchmark.n_classes
        benchmark.notes.append(NOTE.format(slots=slots, n=n, hard=self.n_hard(min(slots, n), n)))

    def policy(self) -> Policy:
        """Its own choice of both ends in place of `--buffer_policy`."""
        return self.choose

    def choose(self, ranking: Tensor, k: int, weights: Tensor) -> Tensor:
        """Of a class's ranking (n,), lowest memorization first, k samples from both ends."""
        n = len(ranking)
        k = min(k, n)
        hard = self.n_hard(k, n)
        return torch.cat((ranking[: k - hard], ranking[n - hard :]))

    def n_hard(self, k: int, n: int) -> int:
        """How many of a class's k slots go to the most memorized of its n samples."""
        return round(self.options.hard_share * k * k / n) if n else 0
