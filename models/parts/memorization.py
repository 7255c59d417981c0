"""Choice by memorization: which samples of a finished task keep its places in the memory.

Source: Kozal et al. 2025, "What is the role of memorization in Continual Learning?" (arXiv
2505.17664), section 5 and Algorithm 1: a proxy watches training; when a task ends, samples are ranked by
it class by class and `--buffer_policy` takes its part of each ranking, the same number for every class.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engram.datasets.benchmark import Batch, Samples, Task
from engram.models.parts.replay import ReplayOptions
from engram.utils.buffers import selection
from engram.utils.config.options import option
from engram.utils.errors import UserError

SCORES = "scores"  # the value of --mem_proxy that stands for the file of --memorization_scores
DEFAULT = "learning_order"


@dataclass(frozen=True)
class ProxyOptions(ReplayOptions):
    """Where memorization comes from."""

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
    """Watches a method's training steps and chooses among the samples of its finished task."""

    def __init__(self, method: Any, policy: str | selection.Policy):
        options, setup = method.options, method.setup
        name = options.mem_proxy or (DEFAULT if setup.scores is None else SCORES)
        if name == SCORES and setup.scores is None:
            raise UserError("--mem_proxy scores: give the file of scores, --memorization_scores FILE")
        self.policy, self.draws = policy, setup.generator("method")
        self.given = setup.scores if name == SCORES else None
        self.proxy = None if name == SCORES else setup.proxy(name)

    def begin(self) -> None:
        """A task begins: forget what was watched in the one before."""
        if self.proxy:
            self.proxy.reset()

    def watch(self, batch: Batch, logits: Tensor) -> None:
        """Outputs (n, C) on the batch of the stream, from the step's forward pass."""
        if self.proxy:
            self.proxy.update(batch.index, logits.detach(), batch.y)

    def memorization(self, method: Any, samples: Samples) -> Tensor:
        """(n,) of the samples; not finite where nothing is known or a sample was never learned."""
        if self.given is not None:
            return self.given[samples.index]
        allowed = None if method.head_mask is None else method.head_mask[samples.task_id]
        return self.proxy.scores(method.net, method.setup.benchmark.augment, samples, allowed)

    def choose(self, method: Any, task: Task, n: int) -> Tensor:
        """At most `n` rows of the task's training samples, by class as the policy wants."""
        samples = method.setup.benchmark.train(task)
        memorization = self.memorization(method, samples)
        ranking = ranked(memorization)
        # chances of the policy `randomized`, from 0 up
        weights = memorization - memorization[ranking[:1]].clamp_max(0).sum()
        return selection.class_balanced(ranking, samples.y, n, self.policy, weights, self.draws)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"draws": self.draws.get_state(), "proxy": self.proxy.state_dict() if self.proxy else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.draws.set_state(state["draws"].cpu())
        if self.proxy:
            self.proxy.load_state_dict(state["proxy"])


@contextmanager
def first_outputs(net: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the network's first forward pass leaves its outputs, detached, in the list.

    For methods built on others: a step's first pass begins with the batch of the stream.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        if not kept:
            kept.append(outputs.detach())

    handle = net.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def observe_watched(method: Any, batch: Batch, observe: Callable[[Batch], dict]) -> dict[str, Tensor]:
    """A step of another method, watched by `method.chooser`."""
    with first_outputs(method.net) as kept:
        out = observe(batch)
    own = kept[0][: len(batch.y)].float()
    method.chooser.watch(batch, method.own_logits(own, batch.task_id))
    return out


def ranked(memorization: Tensor) -> Tensor:
    """Places of the samples of known memorization, lowest first."""
    order = torch.argsort(memorization, stable=True)
    return order[memorization[order].isfinite()]


def replace_task_samples(method: Any, task: Task, chooser: MemorizationSelector, **extra: Any) -> None:
    """Give the places that a task holds in `method.buffer` to the samples chosen.

    extra: fields of the method's own, each a function of the samples chosen.
    """
    if not len(method.buffer):
        return
    places = torch.nonzero(method.buffer.stored()["task_id"] == task.id).view(-1)
    rows = chooser.choose(method, task, len(places))
    chosen = Samples(*(field[rows] for field in method.setup.benchmark.train(task)))
    fields = {name: function(chosen) for name, function in extra.items()}
    x, y, task_id, index = chosen
    method.buffer.replace(places[: len(rows)], x=x, y=y, task_id=task_id, index=index, **fields)
