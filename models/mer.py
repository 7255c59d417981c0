"""Meta-Experience Replay (MER): Reptile over sequential single-sample steps through the memory.

Source: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and
Minimizing Interference" (arXiv 1810.11910), Algorithm 1 (`--mer_variant alg1`), 6 (one big batch) and 7
(alg6 with the current example weighted); official code `meralg1`, `meralg6`, `meralg7`.
Differs from the paper, as the official code does: in alg1 the current sample comes first in each batch
(paper: `--current last`); k draws join it (paper: k − 1), with replacement (paper: `--draws distinct`);
once the memory is full the n-th sample enters with probability M/(n+1) (paper: M/n, `--reservoir
uniform`); alg7 does not train on the run's first example and multiplies the current example's loss,
which for plain SGD is the paper's higher rate. Differs from that code: with several epochs a sample is
offered to the memory once; a batch of the stream is taken example by example, whatever its size.
alg6 and alg7 have the Reptile step γ after each batch and no β. The rate of the inner steps is --lr;
momentum and weight decay have no part in the algorithm. Batch norm sees batches of one sample: use a
network without it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch
from engram.models.method import Setup
from engram.models.parts.inner_steps import InnerSteps
from engram.models.rehearsal import Examples, RehearsalMethod, ReplayOptions
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import OptionError, option
from engram.utils.errors import UserError
from engram.utils.training.optimizers import learning_rate


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of MER."""

    minibatch_size: int = option(10, "samples k drawn to join the current one in each batch", ge=1)
    batches_per_example: int = option(
        1, "alg1, alg6: batches s for each example of the stream (the paper's alg1: 10)", ge=1
    )
    beta: float = option(0.3, "alg1: Reptile step within a batch (the paper's: 0.01 to 0.03)", gt=0, le=1)
    gamma: float = option(
        1.0, "Reptile step across an example's batches (alg1) or after each batch (alg6, alg7)", gt=0, le=1
    )
    mer_variant: str = option("alg1", "algorithm of the paper", choices=("alg1", "alg6", "alg7"))
    current_weight: float = option(1.0, "alg7: factor s of the current example's loss", gt=0)
    current: str = option("first", "alg1: position of the current sample", choices=("first", "last"))
    draws: str = option("replacement", "from the memory", choices=("replacement", "distinct"))
    reservoir: str = option("original", "chance to enter a full memory", choices=("original", "uniform"))

    def __post_init__(self):
        super().__post_init__()
        if self.mer_variant == "alg7" and self.batches_per_example > 1:
            raise OptionError("--batches_per_example: alg7 has one batch per example; see --current_weight")
        if self.mer_variant != "alg7" and self.current_weight != 1:
            raise OptionError("--current_weight belongs to --mer_variant alg7")


class MER(RehearsalMethod):
    """For each example: s batches of single-sample SGD, each followed by a Reptile step."""

    options: Options
    off_switch: ClassVar = {
        "buffer_size": 0,
        "beta": 1,
        "gamma": 1,
        "batches_per_example": 1,
        "batch_size": 1,
    }
    quick_flags: ClassVar = {"minibatch_size": 3, "batches_per_example": 2}
    eager_step = "samples are taken one by one, and the host counts them"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        if setup.train.optimizer != "sgd" or setup.train.optim_mom or setup.train.optim_wd:
            raise UserError(
                "mer takes plain SGD steps of its own: use --optimizer sgd, --optim_mom 0 and --optim_wd 0"
            )
        self.places = setup.generator("method")  # alg7: positions of the current samples
        self.age = 0  # examples learned from
        self.inner = InnerSteps(self)

    def make_buffer(self) -> Buffer:
        """A reservoir; `--reservoir original` is that of the paper's code."""
        options = self.options
        return Buffer(options.buffer_size, self.setup.generator("buffer"), self.device, options.reservoir)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from each example in turn; the loss is the mean of those when an example is first met."""
        losses = []
        for i in range(len(batch.y)):
            example = batch.rows(slice(i, i + 1))
            losses.append(self.learn(Examples(example.x, example.y, example.task_id)))
            self.remember(example)
            self.age += 1
        return {"loss": torch.stack(losses).mean()}

    def learn(self, current: Examples) -> Tensor:
        """The paper's loop body for one example (each field (1, ...)); returns its first loss."""
        o = self.options
        lr = learning_rate(self.optimizer)
        within, across = (o.beta, o.gamma) if o.mer_variant == "alg1" else (o.gamma, 1.0)
        if o.mer_variant == "alg7" and self.age == 0:
            lr = 0.0
        drawn = self.batches(current)
        positions = [self.position(len(batch.y) + 1) for batch in drawn]
        pairs = list(zip(drawn, positions, strict=True))
        batches = [inserted(current, batch, position) for batch, position in pairs]
        scales = [self.scale(batch, position) for batch, position in pairs]
        losses = self.inner.reptile_sgd(batches, lr, within, across, scales)
        return losses[positions[0]]

    def batches(self, current: Examples) -> list[Examples]:
        """s batches of min(k, |M|) samples, in one draw: the memory stands still meanwhile."""
        s, k = self.options.batches_per_example, min(self.options.minibatch_size, len(self.buffer))
        if not k:
            return [Examples(*(field[:0] for field in current))] * s
        if self.options.draws == "replacement":
            stored = self.buffer.sample_with_replacement(s * k)
        else:
            samples = [self.buffer.sample(k) for _ in range(s)]
            stored = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
        drawn = self.augmented(stored)
        return [Examples(*parts) for parts in zip(*(field.split(k) for field in drawn), strict=True)]

    def position(self, n: int) -> int:
        """The position of the current sample among a batch's n samples.

        In alg7, which shuffles: the drawn samples are in random order already, so a uniform position for
        the current one is a uniform order of all.
        """
        if self.options.mer_variant == "alg7":
            return int(torch.randint(n, (), generator=self.places))
        return 0 if self.options.mer_variant == "alg1" and self.options.current == "first" else n - 1

    def scale(self, drawn: Examples, position: int) -> Tensor | None:
        """(n,) factors of the losses, None for ones."""
        if self.options.current_weight == 1:
            return None
        scale = torch.ones(len(drawn.y) + 1, device=self.device)
        scale[position] = self.options.current_weight
        return scale


def inserted(current: Examples, drawn: Examples, position: int) -> Examples:
    """The drawn samples with the current one at a position among them."""
    pairs = zip(drawn, current, strict=True)
    return Examples(*(torch.cat((many[:position], one, many[position:])) for many, one in pairs))
