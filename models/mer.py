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

import torch
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.models.method import Method
from engram.models.parts.inner_steps import kernel_of, reptile_sgd
from engram.models.parts.replay import Replayed, ReplayOptions, store, take
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import OptionError, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of MER."""

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
    current: str = option("first", "alg1: place of the current sample", choices=("first", "last"))
    draws: str = option("replacement", "from the memory", choices=("replacement", "distinct"))
    reservoir: str = option("original", "chance to enter a full memory", choices=("original", "uniform"))

    def __post_init__(self):
        super().__post_init__()
        if self.mer_variant == "alg7" and self.batches_per_example > 1:
            raise OptionError("--batches_per_example: alg7 has one batch per example; see --current_weight")
        if self.mer_variant != "alg7" and self.current_weight != 1:
            raise OptionError("--current_weight belongs to --mer_variant alg7")


class MER(Method):
    """For each example: s batches of single-sample SGD, each followed by a Reptile step."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        if setup.train.optimizer != "sgd" or setup.train.optim_mom or setup.train.optim_wd:
            raise UserError(
                "mer takes plain SGD steps of its own: use --optimizer sgd, --optim_mom 0 and --optim_wd 0"
            )
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device, options.reservoir)
        self.places = setup.generator("method")
        self.age = 0  # examples learned from
        kernel_of(self)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from each example in turn; the loss is the mean of those when an example is first met."""
        losses = []
        for i in range(len(batch.y)):
            example = Batch(*(field[i : i + 1] for field in batch))
            losses.append(self.learn(Replayed(example.x, example.y, example.task_id)))
            store(self, example)
            self.age += 1
        return {"loss": torch.stack(losses).mean()}

    def learn(self, current: Replayed) -> Tensor:
        """The paper's loop body for one example (each field (1, ...)); returns its first loss."""
        o = self.options
        lr = self.optimizer.param_groups[0]["lr"]
        within, across = (o.beta, o.gamma) if o.mer_variant == "alg1" else (o.gamma, 1.0)
        if o.mer_variant == "alg7" and self.age == 0:
            lr = 0.0
        drawn = self.batches(current)
        places = [self.place(len(batch.y) + 1) for batch in drawn]
        batches = [inserted(current, batch, place) for batch, place in zip(drawn, places, strict=True)]
        scales = [self.scale(batch, place) for batch, place in zip(drawn, places, strict=True)]
        losses = reptile_sgd(self, batches, lr, within, across, scales)
        return losses[places[0]]

    def batches(self, current: Replayed) -> list[Replayed]:
        """s batches of min(k, |M|) samples, in one draw: the memory stands still meanwhile."""
        s, k = self.options.batches_per_example, min(self.options.minibatch_size, len(self.buffer))
        if not k:
            return [Replayed(*(field[:0] for field in current))] * s
        drawn = take(self, k, self.options.draws, times=s)
        return [Replayed(*parts) for parts in zip(*(field.split(k) for field in drawn), strict=True)]

    def place(self, n: int) -> int:
        """Where among a batch's n samples the current one goes.

        In alg7, which shuffles: the drawn samples are in random order already, so a uniform place for
        the current one is a uniform order of all.
        """
        if self.options.mer_variant == "alg7":
            return int(torch.randint(n, (), generator=self.places))
        return 0 if self.options.mer_variant == "alg1" and self.options.current == "first" else n - 1

    def scale(self, drawn: Replayed, place: int) -> Tensor | None:
        """(n,) factors of the losses, None for ones."""
        if self.options.current_weight == 1:
            return None
        scale = torch.ones(len(drawn.y) + 1, device=self.device)
        scale[place] = self.options.current_weight
        return scale


def inserted(current: Replayed, drawn: Replayed, place: int) -> Replayed:
    """The drawn samples with the current one at a place among them."""
    pairs = zip(drawn, current, strict=True)
    return Replayed(*(torch.cat((many[:place], one, many[place:])) for many, one in pairs))
