"""Meta-Experience Replay (MER): Reptile over sequential single-sample steps through the memory.

Source: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and
Minimizing Interference" (arXiv 1810.11910), Algorithm 1; official code `meralg1`.
Differs from the paper, as the official code does: the current sample comes first in each batch (in the
paper last), and k draws join it (there k − 1), with replacement. Differs from that code: the reservoir
keeps the n-th sample with probability M/n (there M/(n+1)); with several epochs a sample is offered to
the memory once; a batch of the stream is taken example by example, whatever its size.
The learning rate of the inner steps is --lr; momentum and weight decay have no part in the algorithm.
Batch norm sees batches of one sample: use a network without it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.benchmark import Batch
from models.method import Method
from models.parts.replay import Replayed, ReplayOptions, store
from utils.buffer import Buffer
from utils.errors import UserError
from utils.options import option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of MER."""

    minibatch_size: int = option(10, "samples k drawn to join the current one in each batch", ge=1)
    batches_per_example: int = option(
        1, "batches s drawn for each example of the stream (the paper's runs: 10)", ge=1
    )
    beta: float = option(0.3, "Reptile step within a batch (the paper's runs: 0.01 to 0.03)", gt=0, le=1)
    gamma: float = option(1.0, "Reptile step across the batches of an example", gt=0, le=1)


class MER(Method):
    """For each example: s batches of single-sample SGD, each followed by a Reptile step."""

    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        if setup.train.optimizer != "sgd" or setup.train.optim_mom or setup.train.optim_wd:
            raise UserError(
                "mer takes plain SGD steps of its own: use --optimizer sgd, --optim_mom 0 and --optim_wd 0"
            )
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from each example in turn; the loss is the mean of those before an example's first step."""
        losses = []
        for i in range(len(batch.y)):
            example = Batch(*(field[i : i + 1] for field in batch))
            losses.append(self.learn(Replayed(example.x, example.y, example.task_id)))
            store(self, example)
        return {"loss": torch.stack(losses).mean()}

    def learn(self, current: Replayed) -> Tensor:
        """The paper's loop body for one example (each field (1, ...)); returns its first loss."""
        parameters, drawn = list(self.trainable().values()), self.draw()
        k = len(drawn) // self.options.batches_per_example
        before, losses = snapshot(parameters), []  # θ^A_0
        for i in range(self.options.batches_per_example):
            start = snapshot(parameters)  # θ^W_0
            losses.append(self.sgd_step(current, parameters))
            for sample in drawn[i * k : (i + 1) * k]:
                self.sgd_step(sample, parameters)
            reptile(parameters, start, self.options.beta)
        reptile(parameters, before, self.options.gamma)
        return losses[0]

    def draw(self) -> list[Replayed]:
        """All s·min(k, |M|) single samples that one example needs, in one draw: the memory stands still."""
        n = self.options.batches_per_example * min(self.options.minibatch_size, len(self.buffer))
        if not n:
            return []
        sample = self.buffer.sample_with_replacement(n)
        fields = (self.augment(sample["x"]), sample["y"], sample["task_id"])
        return [Replayed(*each) for each in zip(*(field.split(1) for field in fields), strict=True)]

    def sgd_step(self, sample: Replayed, parameters: list[Tensor]) -> Tensor:
        """θ ← θ − α ∇CE(f(x), y) for one sample; returns the loss before it."""
        loss = F.cross_entropy(self.logits(sample.x, sample.task_id), sample.y)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-self.optimizer.param_groups[0]["lr"])
        return loss.detach()


def snapshot(parameters: list[Tensor]) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def reptile(parameters: list[Tensor], start: list[Tensor], rate: float) -> None:
    """θ ← θ_start + rate (θ − θ_start); exactly nothing for a rate of 1."""
    torch._foreach_lerp_(parameters, start, 1 - rate)
