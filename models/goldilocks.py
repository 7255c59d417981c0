"""Goldilocks: ER on samples that were learned neither too quickly nor too slowly.

Source: Hacohen & Tuytelaars 2024, "Forgetting Order of Continual Learning: Examples That are Learned First
are Forgotten Last" (arXiv 2406.09935): the learning speed of a sample is the share of times, spread over
the training of its task, at which the network classifies it correctly. When the task ends, each class
leaves out its quickest share q and its slowest share s; a uniform choice of the others is kept. Stored:
uint8 images.
Differs from the paper: speeds are measured --speed_probes times at equal distances, all samples at once,
so that one epoch is enough (there after every epoch); where q and s leave too few, the gap widens on both
sides; the defaults of q and s, which the paper tunes, are ours; samples of equal speed are in random order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarReplay, at_random
from engram.models.rehearsal import ReplayOptions
from engram.utils.config.options import option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of Goldilocks."""

    goldilocks_q: float = option(0.2, "share of the most quickly learned samples left out", ge=0, le=1)
    goldilocks_s: float = option(0.4, "share of the most slowly learned samples left out", ge=0, le=1)
    speed_probes: int = option(10, "times that a task's samples are classified to measure speeds", ge=1)

    def __post_init__(self):
        super().__post_init__()
        q, s = self.goldilocks_q, self.goldilocks_s
        if q + s > 1:
            raise UserError(
                f"--goldilocks_q {q} --goldilocks_s {s}: together they must leave some, at most 1"
            )


class Goldilocks(ExemplarReplay):
    """ER on exemplars of middle speed."""

    options: Options

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.n_steps = 0
        self.hits = torch.zeros(0, device=self.device)

    def begin_task(self, task: Task) -> None:
        """Speeds are measured anew in every task."""
        self.n_steps = 0
        self.hits = torch.zeros(len(self.benchmark.train(task).y), device=self.device)

    def after_step(self, batch: Batch) -> None:
        """Classify all the task's samples at `--speed_probes` of its steps."""
        total, n_probes = self.setup.n_steps(self.task), self.options.speed_probes
        self.n_steps += 1
        if self.buffer.size and self.n_steps * n_probes // total > (self.n_steps - 1) * n_probes // total:
            samples = self.benchmark.train(self.task)
            logits = self.evaluate(self.logits, samples.x_raw, samples.task_id)
            self.hits += logits.argmax(1) == samples.y

    def end_task(self, task: Task) -> None:
        """A uniform choice of the middle of each class."""
        n_old, options = len(self.buffer), self.options

        def choose(rows: Tensor, k: int) -> Tensor:
            rows = at_random(self.draws)(rows, len(rows))
            quickest = self.hits[rows - n_old].sort(descending=True, stable=True).indices
            middle = quickest[between(len(rows), k, options.goldilocks_q, options.goldilocks_s)]
            return at_random(self.draws)(rows[middle], k)

        self.buffer.renew(task.id, choose, **self.task_samples(task))


def between(n: int, k: int, q: float, s: float) -> slice:
    """Of n ranks those without the first share q and the last share s; at least min(k, n) of them."""
    start, end = int(q * n), n - int(s * n)
    length = max(end - start, min(k, n))
    start = min(max(start - (length - (end - start)) // 2, 0), n - length)
    return slice(start, start + length)
