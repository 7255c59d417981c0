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
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.inner_steps import InnerSteps
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.buffers.factory import MEMORIES, memory_for
from engram.utils.buffers.reservoir import Buffer
from engram.utils.buffers.ring import KeyedRing
from engram.utils.config.options import OptionError, option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of ER."""

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


@dataclass(frozen=True)
class MemoryOptions(Options):
    """The flags of ER with another memory than the plain reservoir: a subclass names the memory."""

    er_variant: ClassVar[str] = "batch"
    draws: ClassVar[None] = None
    reservoir: ClassVar[None] = None


class ER(RehearsalMethod):
    """Cross-entropy on the stream's batch and one drawn from the memory, together."""

    options: Options
    joins_replay = True
    data_parallel = True
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        by_default = "distinct" if options.er_variant == "batch" else "replacement"
        self.with_replacement = (options.draws or by_default) == "replacement"
        self.scores: dict[str, Tensor] = {}  # loss_aware: the losses of the current batch
        self.inner = InnerSteps(self) if options.er_variant != "batch" else None
        self.eager_step = type(self).eager_step or eager_step(options)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the stream's batch and the batch drawn from the memory."""
        if self.options.memory.startswith("loss_aware"):
            return self.scored_loss(batch)
        samples = self.with_replay(batch)
        return F.cross_entropy(self.logits(samples.x, samples.task_id), samples.y)

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the memory, once the network has been trained on it."""
        self.remember(batch, **self.scores)

    # --- other memories and the forms of the MER paper -------------------------------------------

    def make_buffer(self) -> Buffer | KeyedRing:
        """The memory that `--memory` names."""
        rule = self.options.reservoir or ("uniform" if self.options.er_variant == "batch" else "original")
        return memory_for(self.options.memory, self.options.buffer_size, self.setup, rule)

    def scored_loss(self, batch: Batch) -> Tensor:
        """loss_aware: the same, and each sample's own loss becomes its score in the memory."""
        slots, n = self.buffer.slots(self.n_replayed), len(batch.y)
        replayed = self.augmented(self.buffer.at(slots)) if len(slots) else None
        samples = self.with_replay(batch, replayed)
        losses = F.cross_entropy(self.logits(samples.x, samples.task_id), samples.y, reduction="none")
        if len(slots):
            self.buffer.replace(slots, score=losses.detach()[n:])
        self.scores = {"score": losses.detach()[:n]}
        return losses.mean()

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The contract's step; in alg4 and alg5, which take single samples, a step of plain SGD."""
        if self.inner is None:
            return super().observe(batch)
        samples = self.with_replay(batch)
        if self.inner.kernel is None:  # without the kernel earlier versions drew twice: keeps their numbers
            samples = self.with_replay(batch)
        weights = per_task_mean_weights(samples.task_id) if self.options.er_variant == "alg5" else None
        loss = self.inner.step(samples, weights)
        self.after_step(batch)
        return {"loss": loss}


def per_task_mean_weights(task_id: Tensor) -> Tensor:
    """(n,) weights 1/n_t, n_t samples being of the same task: a sum with them is the sum of tasks' means."""
    return 1 / (task_id.view(-1, 1) == task_id).sum(1)


def eager_step(options: Options) -> str:
    """Why a step with these options cannot be captured as one CUDA graph; "" where it can."""
    if options.er_variant != "batch":
        return "algorithms 4 and 5 take single samples, in a compiled kernel of their own"
    if options.memory.startswith("loss_aware"):
        return "how many samples enter the memory differs from step to step"
    if options.memory.endswith("ring"):
        return "the rings count their samples in new tensors"
    return ""
