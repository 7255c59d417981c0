"""What naive transcriptions of rehearsal methods share: trained twins in float64, and a reservoir of tuples.

Every transcription trains a fresh network of its own on the batches that the method saw, sample by sample
and with the same draws, and must end with the same parameters.
"""

import torch

from engram.datasets.augment import Augment
from engram.utils.buffers.reservoir import distinct
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method

SCENARIOS = ["class-il", "domain-il"]
LR, SIZE, K = 0.05, 15, 6
FLAGS = {"buffer_size": SIZE, "minibatch_size": K}


class Doubles(Augment):
    """No augmentation, images in float64: sums in another order then agree to many digits."""

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        return super().scaled(raw).double()


def trained(model: str, scenario: str, **flags):
    """A method after three tasks in float64, an untrained twin, the steps (task, batch)."""
    method, config = tiny_method(model, scenario, **flags)
    twin, _ = tiny_method(model, scenario, **flags)
    for each in (method, twin):
        each.net.double()
        each.setup.benchmark.augment = Doubles()
    benchmark, steps = method.setup.benchmark, []
    for task in benchmark.tasks:
        method.enter(task)
        method.begin_task(task)
        method.optimizer = build_optimizer(method.trainable().values(), config.train)
        for batch in benchmark.batches(task, 0, config.train.batch_size):
            method.observe(batch)
            steps.append((task.id, batch))
        method.end_task(task)
    return method, twin, steps


class Reservoir(list):
    """Vitter's algorithm R on tuples, with the buffer's draws."""

    def __init__(self, generator: torch.Generator, size: int = SIZE):
        super().__init__()
        self.generator, self.size, self.n_seen = generator, size, 0

    def offer(self, samples) -> None:
        samples = list(samples)
        draws = torch.rand(len(samples), generator=self.generator, dtype=torch.float64).tolist()
        for sample, draw in zip(samples, draws, strict=True):
            self.n_seen += 1
            if len(self) < self.size:
                self.append(sample)
            elif (slot := int(draw * self.n_seen)) < self.size:
                self[slot] = sample

    def draw(self, n: int = K) -> list:
        rows = distinct(len(self), min(n, len(self)), self.generator).tolist()
        return [self[row] for row in rows]


def columns(samples) -> list[torch.Tensor]:
    """Samples as one tensor for each of their parts."""
    return [torch.stack(part) for part in zip(*samples, strict=True)]
