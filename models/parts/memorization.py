"""Choice by memorization: which samples of a finished task keep its slots in the memory.

Source: Kozal et al. 2025, "What is the role of memorization in Continual Learning?" (arXiv
2505.17664), section 5 and Algorithm 1: a proxy watches training; when a task ends, samples are ranked by
it class by class and `--buffer_policy` takes its part of each ranking, the same number for every class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Samples, Task
from engram.models.method import Setup
from engram.models.parts.inference import allowed_classes
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.buffers import selection
from engram.utils.config.options import option
from engram.utils.errors import UserError

SCORES = "scores"  # the value of --mem_proxy that stands for the file of --memorization_scores
DEFAULT = "learning_order"


@dataclass(frozen=True)
class ProxyOptions(ReplayOptions):
    """Where the memorization of samples is taken from."""

    mem_proxy: str | None = option(
        None,
        "how memorization is guessed: learning_order (the paper's), forgetting_events, el2n, curvature, ... "
        "or scores, from --memorization_scores (default: scores where a file is given, else learning_order)",
    )


@dataclass(frozen=True)
class MemorizationOptions(ProxyOptions):
    """Flags of the methods that choose by memorization as the paper does."""

    buffer_policy: str = option(
        "min", "memorization of the samples kept: lowest, highest, middle, ...", choices=selection.POLICIES
    )


class MemorizationSelector:
    """Watches a method's training steps and chooses among the samples of its finished task.

    name: a proxy's, or SCORES; None: SCORES where the run was given a file of scores, else DEFAULT. policy:
    the name of one, or a function that takes its k of a class's ranking. purpose: the name of its draws.
    """

    def __init__(
        self, net: Backbone, setup: Setup, name: str | None, policy: str | selection.Policy, purpose: str
    ) -> None:
        name = name or (DEFAULT if setup.scores is None else SCORES)
        if name == SCORES and setup.scores is None:
            raise UserError("--mem_proxy scores: give the file of scores, --memorization_scores FILE")
        self.net, self.benchmark, self.policy = net, setup.benchmark, policy
        self.draws = setup.generator(purpose)
        self.given = setup.scores if name == SCORES else None
        self.proxy = None if name == SCORES else setup.proxy(name)

    def begin(self) -> None:
        """Forget what was watched in the task before: a new one begins."""
        if self.proxy:
            self.proxy.reset()

    def watch(self, batch: Batch, logits: Tensor) -> None:
        """Take note of outputs (n, C) on the stream's batch, from the step's forward pass."""
        if self.proxy:
            self.proxy.update(batch.index, logits.detach(), batch.y)

    def memorization(self, samples: Samples, task: Task) -> Tensor:
        """(n,) of the samples when `task` ends; not finite where nothing is known or never learned."""
        if self.given is not None:
            return self.given[samples.index]
        mask = allowed_classes(self.net, self.benchmark, task)
        allowed = None if mask is None else mask[samples.task_id]
        return self.proxy.scores(self.net, self.benchmark.augment, samples, allowed)

    def choose(self, task: Task, n: int) -> Tensor:
        """At most `n` rows of the task's training samples, by class as the policy wants."""
        samples = self.benchmark.train(task)
        memorization = self.memorization(samples, task)
        ranking = ranked(memorization)
        # chances of the policy `randomized`, from 0 up
        weights = memorization - memorization[ranking[:1]].clamp_max(0).sum()
        return selection.class_balanced(ranking, samples.y, n, self.policy, weights, self.draws)

    def state_dict(self) -> dict[str, Any]:
        """The random draws and what the proxy has noted so far."""
        return {"draws": self.draws.get_state(), "proxy": self.proxy.state_dict() if self.proxy else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.draws.set_state(state["draws"].cpu())
        if self.proxy:
            self.proxy.load_state_dict(state["proxy"])


class MemorizationReplay(RehearsalMethod):
    """A mixin: when a task ends, its slots in the memory go to the samples that the policy chooses.

    Put it before the method whose memory it rewrites. That method's steps must show the stream's outputs to
    `self.chooser.watch`; `WatchedReplay` does it for a method that knows nothing of memorization.
    """

    needs_boundaries = True
    chooser_draws = "method"

    def __init__(self, net: Backbone, options: ProxyOptions, setup: Setup) -> None:
        super().__init__(net, options, setup)
        name, policy = options.mem_proxy, self.policy()
        self.chooser = MemorizationSelector(self.net, setup, name, policy, self.chooser_draws)

    def policy(self) -> str | selection.Policy:
        """What `--buffer_policy` says; or a function (ranking, k, weights) → k of a class's ranking."""
        return self.options.buffer_policy

    def begin_task(self, task: Task) -> None:
        """Memorization is measured anew in every task."""
        super().begin_task(task)
        self.chooser.begin()

    def end_task(self, task: Task) -> None:
        """Give the task's slots in the memory to the samples that the policy chooses."""
        if not len(self.buffer):
            return
        slots = torch.nonzero(self.buffer.stored()["task_id"] == task.id).view(-1)
        rows = self.chooser.choose(task, len(slots))
        x, y, task_id, index = chosen = Samples(*(field[rows] for field in self.benchmark.train(task)))
        extra = self.extra_fields(chosen)
        self.buffer.replace(slots[: len(rows)], x=x, y=y, task_id=task_id, index=index, **extra)

    def extra_fields(self, chosen: Samples) -> dict[str, Tensor]:
        """Further fields that the method's memory keeps of the samples chosen, each (k, ...)."""
        return {}


class WatchedReplay(MemorizationReplay):
    """The mixin for a method that knows nothing of memorization: its forward passes are watched."""

    chooser_draws = "choice by memorization"  # the method may have draws named after it

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """A step of the method, whose first forward pass begins with the stream's batch."""
        with first_outputs(self.net) as outputs:
            result = super().observe(batch)
        stream = outputs[0][: len(batch.y)].float()
        self.chooser.watch(batch, self.mask_classes(stream, batch.task_id))
        return result


@contextmanager
def first_outputs(net: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the network's first forward pass leaves its outputs, detached, in the list."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not outputs:
            outputs.append(output.detach())

    handle = net.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def ranked(memorization: Tensor) -> Tensor:
    """Rows of the samples of known memorization, lowest first."""
    order = torch.argsort(memorization, stable=True)
    return order[memorization[order].isfinite()]
