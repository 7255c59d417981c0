"""Training: several networks at once, each on its own examples, from data that stay on the device.

Initial weights, order and augmentation of a network derive from (seed, repeat, epoch) alone: neither the
networks beside it nor an interruption changes what it sees.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.heads import SharedHead
from engram.memorization.cli import Options
from engram.memorization.settings import MILESTONES, RecipeOptions, scaled
from engram.memorization.stacked_networks import Stack, draws_masks, refuse_masks, stack
from engram.memorization.study_data import StudyData
from engram.utils import checkpoint, seeding
from engram.utils.config import registry
from engram.utils.errors import UserError

# Networks trained as one that are tried; on a CPU more than these no longer fit its caches.
CANDIDATES = {"cpu": (1, 4, 16), "cuda": (1, 8, 32, 128)}
SLOW_STEP = 0.2  # seconds: a single network's step this long is all arithmetic, stacking cannot help
Watch = Callable[[Tensor, Tensor, Tensor], None]


def network(options: Options, pool: StudyData, repeat: int) -> nn.Module:
    """The untrained network of a repeat, on the pool's device."""
    name, seed = options.network.model_name, options.recipe.seed
    architecture = scaled(options.architecture, options.network.model_width)
    with seeding.isolated(seed, "init", repeat):
        backbone = registry.load("backbones", name).build(architecture, tuple(pool.images.shape[1:]), name)
        built = backbone.attach(SharedHead(backbone.feature_dim, pool.n_classes))
    return built.to(pool.device)


def rate(recipe: RecipeOptions, epoch: int) -> float:
    """The learning rate of an epoch."""
    passed = sum(epoch >= round(part * recipe.n_epochs) for part in MILESTONES)
    return recipe.lr * 0.1**passed


def epoch_order(rows: Tensor, seed: int, repeat: int, *keys: int) -> Tensor:
    """A network's examples (n,) in the order of one epoch."""
    return rows[torch.randperm(len(rows), generator=seeding.generator(seed, "order", repeat, *keys))]


@dataclass(frozen=True)
class Cohort:
    """Networks trained together: the repeat each stands for, and its examples, (K, n) rows of the pool."""

    repeats: list[int]
    rows: Tensor


class Training:
    """A cohort on its way through the epochs; can be saved between two of them."""

    def __init__(self, options: Options, pool: StudyData, cohort: Cohort):
        self.pool, self.cohort, self.recipe = pool, cohort, options.recipe
        networks = [network(options, pool, repeat) for repeat in cohort.repeats]
        self.stack: Stack = stack(networks).train()
        self.optimizer = sgd(self.stack, options.recipe)
        self.epoch = 0

    @property
    def n_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.recipe.n_epochs

    @property
    def finished(self) -> bool:
        """Whether all epochs have been run."""
        return self.epoch == self.n_epochs

    def run_epoch(self, watch: Watch | None = None) -> None:
        """One pass; `watch(rows, logits, y)`, each (K, n, ...), is called with every step's outputs."""
        seed, size, repeats = self.recipe.seed, self.recipe.batch_size, self.cohort.repeats
        orders = [
            epoch_order(rows, seed, r, self.epoch) for r, rows in zip(repeats, self.cohort.rows, strict=True)
        ]
        rows = torch.stack(orders).to(self.pool.device)
        windows = stacked_windows(self.pool, rows.shape[1], seed, repeats, self.epoch)
        self.optimizer.param_groups[0]["lr"] = rate(self.recipe, self.epoch)
        total = torch.zeros(len(repeats), device=self.pool.device)
        for start in range(0, rows.shape[1], size):
            part = slice(start, start + size)
            own = rows[:, part]
            x = self.pool.batch(own, windows and type(windows)(*(w[:, part] for w in windows)))
            y = self.pool.labels[own]
            logits = self.stack.logits(x)
            total += step(self.optimizer, logits, y)
            if watch:
                watch(own, logits.detach(), y)
        check_finite(total, repeats, f"epoch {self.epoch + 1}")
        self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Fit for a checkpoint."""
        return {
            "repeats": self.cohort.repeats,
            "epoch": self.epoch,
            "stack": self.stack.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.epoch = state["epoch"]
        self.stack.load_state_dict(state["stack"])
        self.optimizer.load_state_dict(state["optimizer"])


def complete(training: Training, path: Path, minutes: float, report: Callable[[float], None]) -> None:
    """Run what is left of a training, from and to the checkpoint at `path`; reports shares of the whole."""
    epochs = training.n_epochs
    if path.exists():
        saved = checkpoint.read(path)
        if saved["repeats"] == training.cohort.repeats:
            training.load_state_dict(saved)
            report(training.epoch / epochs)
    saved_at = time.monotonic()
    while not training.finished:
        training.run_epoch()
        report(1 / epochs)
        if time.monotonic() - saved_at >= 60 * minutes:
            checkpoint.write(training.state_dict(), path)
            saved_at = time.monotonic()


def sgd(stacked: Stack, recipe: RecipeOptions) -> torch.optim.Optimizer:
    """The optimizer of a stack: stacked parameters follow the very rule of single ones."""
    return torch.optim.SGD(
        list(stacked.parameters.values()), lr=recipe.lr, momentum=recipe.momentum,
        weight_decay=recipe.weight_decay, fused=True,
    )  # fmt: skip


def stacked_windows(pool: StudyData, n: int, seed: int, repeats: list[int], *keys: int):
    """Augmentations of n examples for each network, fields (K, n); None where images are not changed."""
    if not pool.augments:
        return None
    each = [pool.draws(n, seed, repeat, *keys) for repeat in repeats]
    return type(each[0])(*(torch.stack(fields) for fields in zip(*each, strict=True)))


def step(optimizer: torch.optim.Optimizer, logits: Tensor, y: Tensor) -> Tensor:
    """One step of all networks on logits (K, n, C): their mean losses, (K,), detached.

    The losses are summed over networks, so that each gets the gradient of its own.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()
    return losses.detach()


def check_finite(losses: Tensor, repeats: list[int], where: str) -> None:
    """Refuse to go on with networks whose loss is not a number."""
    for repeat, value in zip(repeats, losses.tolist(), strict=True):
        if not math.isfinite(value):
            raise UserError(f"network {repeat}: the loss became {value} in {where}; try a smaller --lr")


def stack_size(options: Options, pool: StudyData, n: int, at_most: int) -> int:
    """How many networks to train as one: --stack if it is given and can be, else `best_stack`."""
    first = network(options, pool, 0)
    refuse_masks(first, options.machine.stack)
    return options.machine.stack or (1 if draws_masks(first) else best_stack(options, pool, n, at_most))


def best_stack(options: Options, pool: StudyData, n: int, at_most: int) -> int:
    """How many networks to train as one: the least measured time per network and step.

    n: examples of a network. Processor time on a CPU, so that other programs do not decide.
    """
    chosen, least = 1, math.inf
    for size in (c for c in CANDIDATES[pool.device.type] if c <= at_most):
        try:
            seconds = _seconds_per_step(options, pool, n, size) / size
        except torch.OutOfMemoryError:  # of the device; a CPU's candidates are few
            break
        if seconds >= least:
            break
        chosen, least = size, seconds
        if size == 1 and seconds > SLOW_STEP:
            break
    return chosen


def _seconds_per_step(options: Options, pool: StudyData, n: int, size: int) -> float:
    rows = torch.arange(min(n, options.recipe.batch_size)).expand(size, -1).to(pool.device)
    stacked = stack([network(options, pool, k) for k in range(size)]).train()
    optimizer = sgd(stacked, options.recipe)

    def one() -> None:
        windows = stacked_windows(pool, rows.shape[1], 0, list(range(size)))
        step(optimizer, stacked.logits(pool.batch(rows, windows)), pool.labels[rows])

    cpu = pool.device.type == "cpu"
    clock, wait = (time.process_time, int) if cpu else (time.perf_counter, torch.cuda.synchronize)
    one()
    least = math.inf
    for _ in range(3):
        wait()
        started = clock()
        one()
        wait()
        least = min(least, clock() - started)
        if least > size * SLOW_STEP:
            break
    return least
