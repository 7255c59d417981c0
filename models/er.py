"""Experience Replay (ER), with a reservoir or another memory of raw images.

Source: Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486),
Algorithm 1 with the reservoir of Algorithm 2 (`--er_variant batch`); Riemer et al. 2019 (MER, arXiv
1810.11910), Algorithm 4 (`alg4`: the mean over current and drawn samples) and Algorithm 5 (`alg5`: the
sum over tasks of each task's mean), official code `eralg4` and `eralg5`. Other memories: `--memory
class_ring` (Chaudhry's ring buffer), balanced (Kozal et al. 2025, arXiv 2505.17664), loss_aware and
loss_aware_balanced (Buzzega et al. 2021, arXiv 2010.05595), task_ring, fifo.
Differs from the papers: with several epochs a sample is offered to the memory once, not once per epoch.
alg4 and alg5 follow the official code where it departs from the paper: min(k, |M|) samples are drawn
with replacement to join the current one (paper: `--draws distinct`), and once the memory is full the
n-th sample enters with probability M/(n+1) (paper: M/n, `--reservoir uniform`). That code takes the
stream one sample at a time: --batch_size 1; larger batches join the drawn samples whole.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engram.models.method import Method
from engram.models.parts.inner_steps import compiled_step, kernel_of, weighted_loss
from engram.models.parts.replay import (
    Replayed,
    ReplayOptions,
    augmented,
    draw,
    joined,
    replayed_per_step,
    store,
)
from engram.utils.buffers.factory import MEMORIES, memory_for
from engram.utils.config.options import OptionError, option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of ER."""

    er_variant: str = option(
        "batch", "Chaudhry's, or algorithm 4 or 5 of the MER paper", choices=("batch", "alg4", "alg5")
    )
    draws: str | None = option(
        None, "from the memory (default: distinct for batch, otherwise replacement)",
        choices=("replacement", "distinct"),
    )  # fmt: skip
    reservoir: str | None = option(
        None, "chance to enter a full memory (default: uniform for batch, otherwise original)",
        choices=("original", "uniform"),
    )  # fmt: skip
    memory: str = option("reservoir", "which samples are kept", choices=MEMORIES)

    def __post_init__(self):
        super().__post_init__()
        if self.memory != "reservoir" and (self.er_variant != "batch" or self.draws or self.reservoir):
            raise OptionError(
                f"--memory {self.memory}: --er_variant, --draws and --reservoir belong to --memory reservoir"
            )


class ER(Method):
    """Cross-entropy on the stream's batch and one drawn from the memory, together."""

    rehearses = True
    data_parallel = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        of_chaudhry = options.er_variant == "batch"
        self.draws = options.draws or ("distinct" if of_chaudhry else "replacement")
        rule = options.reservoir or ("uniform" if of_chaudhry else "original")
        self.buffer = memory_for(options.memory, options.buffer_size, setup, rule)
        self.scores: dict[str, Tensor] = {}  # loss_aware: the losses of the current batch
        if not of_chaudhry:
            kernel_of(self)

    def examples(self, batch) -> tuple[Replayed, Tensor | None]:
        """Stream and replay, and their weights in the loss (None: the mean)."""
        samples = Replayed(*joined(batch, draw(self, self.draws)))
        return samples, per_task_mean_weights(samples.task_id) if self.options.er_variant == "alg5" else None

    def loss(self, batch):
        """Over stream and replayed samples together."""
        if self.options.memory.startswith("loss_aware"):
            return self.noted_loss(batch)
        return weighted_loss(self, *self.examples(batch))

    def noted_loss(self, batch):
        """The same, and each sample's own loss becomes its score in the memory."""
        slots, n = self.buffer.slots(replayed_per_step(self)), len(batch.y)
        replayed = augmented(self, self.buffer.at(slots)) if len(slots) else None
        samples = Replayed(*joined(batch, replayed))
        losses = F.cross_entropy(self.logits(samples.x, samples.task_id), samples.y, reduction="none")
        if len(slots):
            self.buffer.replace(slots, score=losses.detach()[n:])
        self.scores = {"score": losses.detach()[:n]}
        return losses.mean()

    def observe(self, batch):
        """The contract's step; alg4 and alg5, which take single samples, in compiled form where it fits."""
        compiled = self.options.er_variant != "batch"
        loss = compiled_step(self, *self.examples(batch)) if compiled else None
        if loss is None:
            return super().observe(batch)
        self.after_step(batch)
        return {"loss": loss}

    def after_step(self, batch):
        """The memory's update, after training on the batch."""
        store(self, batch, **self.scores)


def per_task_mean_weights(task_id: Tensor) -> Tensor:
    """(n,) weights 1/n_t, n_t samples of one's own task: with them a sum is the sum of tasks' means."""
    return 1 / (task_id.view(-1, 1) == task_id).sum(1)
