"""Bias Correction (BiC): a linear correction of the newest logits, fitted on held-out samples.

Source: Wu et al. 2019, "Large Scale Incremental Learning" (arXiv 1905.13260), eqs. 1-4. Stage 1, on the
union of the task's data and the exemplars: λ L_distill + (1 − λ) L_ce over n old and m new classes,
λ = n/(n+m); distillation at temperature 2 from the last network, corrected as it was. Stage 2, with the
network fixed: logits of the new classes become α z + β, the two numbers with the least cross-entropy on
a validation set with the same number of samples of every old and new class. Exemplars are herded as in
iCaRL. Stored: uint8 images.
Differs from the paper: α and β are found by L-BFGS (there 200 epochs of SGD), with a ridge of 1e-3 towards
no correction that keeps them finite where few samples are separable. Validation samples are, of each old
class, every tenth exemplar from the best on, which may have been trained on when its class was new; and
as many of each new class, drawn at random, whose loss does not count.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarMethod, ExemplarOptions
from engram.models.parts.teacher import frozen_copy
from engram.utils.buffers.exemplar_memory import ExemplarMemory
from engram.utils.config.options import option

RIDGE = 1e-3


@dataclass(frozen=True)
class Options(ExemplarOptions):
    """These are the flags of BiC."""

    valset_split: float = option(
        0.1, "share of a class's exemplars held out for the correction, at least one", gt=0, lt=1
    )
    softmax_temp: float = option(2.0, "temperature of the distillation", gt=0)


class BiC(ExemplarMethod):
    """Cross-entropy and distillation; then two parameters."""

    options: Options
    scenarios = ("class-il",)
    chooses_classes = True
    off_switch = "it also distils, with or without a memory"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.teacher = frozen_copy(net)
        self.draws = setup.generator("method")
        shape = len(setup.benchmark.tasks), setup.benchmark.n_train
        self.held = torch.zeros(shape, dtype=torch.bool, device=self.device)  # held out, by task and index
        self.bias = torch.tensor([1.0, 0.0], device=self.device)  # α, β of the last task's classes
        self.teacher_bias = self.bias.clone()

    def make_buffer(self) -> ExemplarMemory:
        """Exemplars, at least two of a class: one of them can be held out."""
        return ExemplarMemory(self.options.buffer_size, self.setup, per_group=2)

    def begin_task(self, task: Task) -> None:
        """Keep the last network and its correction as the teacher; hold samples out for the next one."""
        self.teacher.load_state_dict(self.net.state_dict())
        self.teacher_bias.copy_(self.bias)
        self.bias.copy_(torch.tensor([1.0, 0.0]))
        self.held.fill_(False)
        if not len(self.buffer):
            return
        share, rank = self.options.valset_split, self.buffer.ranks()
        chosen = ((rank + 1) * share).ceil() > (rank * share).ceil()
        stored = self.buffer.stored()
        self.held[stored["task_id"][chosen], stored["index"][chosen]] = True
        per_class = -(-int(chosen.sum()) // self.buffer.n_groups[task.id])
        samples = self.benchmark.train(task)
        for label in task.classes:
            members = samples.index[samples.y == label]
            drawn = torch.randperm(len(members), generator=self.draws)
            few = drawn[: min(per_class, int(share * len(members)))].to(self.device)
            self.held[task.id, members[few]] = True

    def loss(self, batch: Batch) -> Tensor:
        """λ L_distill + (1 − λ) L_ce, λ = n_old / n_seen, over the samples that are not held out."""
        samples = self.union(batch)
        n_old, n_seen = self.buffer.n_groups[self.task.id : self.task.id + 2]
        logits = self.net(samples.x, samples.task_id)[:, :n_seen]
        losses = F.cross_entropy(logits, samples.y, reduction="none")
        if n_old:
            share, temperature = n_old / n_seen, self.options.softmax_temp
            targets = (self.taught(samples, n_old) / temperature).softmax(1)
            distilled = F.cross_entropy(logits[:, :n_old] / temperature, targets, reduction="none")
            losses = (
                share * distilled
                + (1 - share) * losses
            )  # fmt: skip
        weights = (~self.held[samples.task_id, samples.index]).to(losses.dtype)
        return (weights * losses).sum() / weights.sum().clamp_min(1)

    @torch.no_grad()
    def taught(self, samples: Batch, n_old: int) -> Tensor:
        """(N, n_old) the last network's logits, corrected as it was."""
        logits = self.teacher(samples.x, samples.task_id)[:, :n_old]
        return corrected(logits, self.teacher_bias, self.buffer.n_groups[self.task.id - 1])

    def end_task(self, task: Task) -> None:
        """Fit the correction on what was held out, then renew the exemplars."""
        if len(self.buffer):
            pools = (self.buffer.stored(), self.task_samples(task))
            masks = [self.held[pool["task_id"], pool["index"]] for pool in pools]
            x, y, task_id = (
                torch.cat([pool[name][mask] for pool, mask in zip(pools, masks, strict=True)])
                for name in ("x", "y", "task_id")
            )
            n_old, n_seen = self.buffer.n_groups[task.id : task.id + 2]
            logits = self.evaluate(self.net, x, task_id)[:, :n_seen]
            self.bias.copy_(fit_bias(logits, y, n_old))
        self.renew(task)

    def renew(self, task: Task) -> None:
        """Give the task's share of the memory to herded exemplars."""
        self.keep_herded(task)

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """Logits, those of the last task's classes corrected."""
        logits = self.net(x, task_id)
        if self.task is None:
            return logits
        first, end = self.buffer.n_groups[self.task.id : self.task.id + 2]
        return torch.cat((corrected(logits[:, :end], self.bias, first), logits[:, end:]), 1)


def corrected(logits: Tensor, bias: Tensor, first: int) -> Tensor:
    """(N, C) logits, from column `first` on α z + β; bias: (2,) α, β."""
    return torch.cat((logits[:, :first], bias[0] * logits[:, first:] + bias[1]), 1)


def fit_bias(logits: Tensor, y: Tensor, first: int) -> Tensor:
    """(2,) α and β for the columns from `first` on that give (N, C) logits the least cross-entropy."""
    logits = logits.double()
    start = torch.tensor([1.0, 0.0], dtype=logits.dtype, device=logits.device)
    bias = start.clone().requires_grad_()
    search = torch.optim.LBFGS([bias], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(corrected(logits, bias, first), y) + RIDGE / 2 * (bias - start).square().sum()
        value.backward()
        return value

    search.step(cost)
    return bias.detach()
