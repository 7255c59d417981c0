"""Training: several networks at once, each on its own examples, from data that stay on the device.

Initial weights, order and augmentation of a network derive from (seed, repeat, epoch) alone: neither the
networks beside it nor an interruption changes what it sees.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone, refuse_beyond_memory, refuse_vectors
from engram.backbones.heads import SharedHead
from engram.datasets.augment import Windows
from engram.memorization import study_data
from engram.memorization.settings import MILESTONES, RecipeOptions, StudyConfig, scaled
from engram.memorization.stacked_networks import (
    StackedNetworks,
    refuse_stacked_dropout,
    runs_alone,
    stack_networks,
)
from engram.memorization.study_data import StudyData
from engram.utils import checkpoint, precision, seeding, single_samples
from engram.utils import device as devices
from engram.utils.config import registry
from engram.utils.config.outside import label
from engram.utils.errors import UserError

# Numbers of networks trained as one that are tried; on a CPU more than these no longer fit its caches.
CANDIDATES = {"cpu": (1, 4, 16), "cuda": (1, 8, 32, 128)}
SLOW_STEP = 0.2  # seconds: a single network's step this long is all arithmetic, stacking cannot help
Observer = Callable[[Tensor, Tensor, Tensor], None]


def build_network(config: StudyConfig, data: StudyData, repeat: int) -> Backbone:
    """The untrained network of a repeat, on the device of the data."""
    name, seed = config.network.backbone, config.recipe.seed
    architecture = scaled(config.architecture, config.network.model_width)
    shape = tuple(data.images.shape[1:])
    refuse_vectors(name, shape)
    refuse_beyond_memory(name, architecture, shape, data.device)
    with seeding.isolated(seed, "init", repeat):
        backbone: Backbone = registry.load("backbones", name).build(architecture, shape, label(name))
        network = backbone.attach(SharedHead(backbone.feature_dim, data.n_classes))
    arithmetic = precision.resolve(config.machine.precision, data.device)
    precision.configure(arithmetic)
    precision.use(arithmetic, network)
    precision.time_convolutions(network, data.device)
    return network.to(data.device)


def learning_rate(recipe: RecipeOptions, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0."""
    n_decays = sum(epoch >= round(milestone * recipe.n_epochs) for milestone in MILESTONES)
    return recipe.lr * 0.1**n_decays


def epoch_order(rows: Tensor, seed: int, repeat: int, *keys: int) -> Tensor:
    """A network's examples (n,) in the order of one epoch."""
    return rows[torch.randperm(len(rows), generator=seeding.generator(seed, "order", repeat, *keys))]


class StackedTraining(ABC):
    """Networks trained as one, epoch by epoch; can be saved and restored between two epochs."""

    n_epochs: int

    def __init__(self, config: StudyConfig, data: StudyData, repeats: list[int]):
        self.data, self.repeats, self.recipe = data, repeats, config.recipe
        networks = [build_network(config, data, repeat) for repeat in repeats]
        self.stack: StackedNetworks = stack_networks(networks).train()
        self.optimizer = sgd(self.stack, self.recipe)
        self.epoch = 0

    @property
    def finished(self) -> bool:
        """Whether all epochs have been run."""
        return self.epoch == self.n_epochs

    @abstractmethod
    def run_epoch(self) -> None:
        """Train all networks for one epoch."""

    def state_dict(self) -> dict[str, Any]:
        """All that later epochs depend on, for a checkpoint."""
        return {
            "repeats": self.repeats, "epoch": self.epoch, "stack": self.stack.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.epoch = state["epoch"]
        self.stack.load_state_dict(state["stack"])
        self.optimizer.load_state_dict(state["optimizer"])


class CohortTraining(StackedTraining):
    """Networks that are trained on fixed examples; `rows`: (K, n) rows of the data, those of each network."""

    def __init__(self, config: StudyConfig, data: StudyData, repeats: list[int], rows: Tensor):
        super().__init__(config, data, repeats)
        self.rows = rows
        self.n_epochs = self.recipe.n_epochs
        refuse_last_batch_of_one(config, data, [rows.shape[1]])

    def run_epoch(self, observe: Observer | None = None) -> None:
        """Train for one epoch; `observe(rows, logits, y)`, each (K, n, ...), is called at every step."""
        seed, size, data = self.recipe.seed, self.recipe.batch_size, self.data
        pairs = zip(self.repeats, self.rows, strict=True)
        orders = [epoch_order(rows, seed, repeat, self.epoch) for repeat, rows in pairs]
        epoch_rows = torch.stack(orders).to(data.device)
        windows = stacked_windows(data, epoch_rows.shape[1], seed, self.repeats, self.epoch)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.recipe, self.epoch)
        total = torch.zeros(len(self.repeats), device=data.device)
        for start in range(0, epoch_rows.shape[1], size):
            step = slice(start, start + size)
            rows = epoch_rows[:, step]
            y = data.labels[rows]
            logits = self.stack.logits(data.batch(rows, windows_at(windows, step)))
            total += train_step(self.optimizer, logits, y)
            if observe:
                observe(rows, logits.detach(), y)
        check_finite(total, self.repeats, f"epoch {self.epoch + 1}")
        self.epoch += 1


def train_to_end(
    training: StackedTraining, path: Path, minutes: float, report: Callable[[float], None]
) -> None:
    """Run the epochs that are left, from and to the checkpoint at `path`.

    minutes: of training between two checkpoints. report: is called with each share of the whole training
    that is done, 1 in all. A checkpoint of other repeats is ignored. Several networks are left in a
    checkpoint at the end, too: their results are several files, between which a kill may come.
    """
    if path.exists():
        saved = checkpoint.read(path)
        if saved.keys() != training.state_dict().keys():
            raise checkpoint.CheckpointError(f"{path}: not a checkpoint of these networks; move it away")
        if saved["repeats"] == training.repeats:
            training.load_state_dict(saved)
            report(training.epoch / training.n_epochs)
    saved_at = time.monotonic()
    while not training.finished:
        training.run_epoch()
        report(1 / training.n_epochs)
        last = training.finished and len(training.repeats) > 1
        if last or time.monotonic() - saved_at >= 60 * minutes:
            checkpoint.write(training.state_dict(), path)
            saved_at = time.monotonic()


def networks_to_train(missing: list[int], path: Path) -> list[int]:
    """The networks that a job trains as one: those `missing`, or those of its checkpoint if it has them all.

    Rounding depends on which networks are trained as one, so a job that was interrupted while it wrote its
    results goes on with the networks that it had.
    """
    if path.exists():
        repeats: list[int] = checkpoint.read(path).get("repeats", [])
        if set(missing) <= set(repeats):
            return repeats
    return missing


def refuse_last_batch_of_one(config: StudyConfig, data: StudyData, counts: list[int]) -> None:
    """Raise `UserError` where the last batch of so many examples is one that batch norm cannot take."""
    size = config.recipe.batch_size
    sample = torch.zeros(data.images.shape[1:], device=data.device)
    if single_samples.leaves_one(counts, size) and single_samples.cannot_learn(
        build_network(config, data, 0), sample
    ):
        single_samples.refuse(counts, size)


def sgd(stacked: StackedNetworks, recipe: RecipeOptions) -> torch.optim.SGD:
    """The optimizer of a stack: stacked parameters follow the very rule of single ones."""
    return torch.optim.SGD(
        list(stacked.parameters.values()), lr=recipe.lr, momentum=recipe.optim_mom,
        weight_decay=recipe.optim_wd, fused=True,
    )  # fmt: skip


def stacked_windows(data: StudyData, n: int, seed: int, repeats: list[int], *keys: int) -> Windows | None:
    """Augmentations of n examples for each network, fields (K, n); None where images are not changed."""
    if not data.augments:
        return None
    draws = [data.draws(n, seed, repeat, *keys) for repeat in repeats]
    return Windows(*(torch.stack(fields) for fields in zip(*draws, strict=True)))


def windows_at(windows: Windows | None, columns: slice) -> Windows | None:
    """The augmentations (K, n) of some columns."""
    return windows and Windows(*(field[:, columns] for field in windows))


def train_step(optimizer: torch.optim.Optimizer, logits: Tensor, y: Tensor) -> Tensor:
    """One step of all networks on logits (K, n, C): their mean losses, (K,), detached.

    The losses are summed over networks, so that each gets the gradient of its own.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    optimizer.zero_grad()
    losses.sum().backward()
    optimizer.step()
    return losses.detach()


def check_finite(losses: Tensor, repeats: list[int], when: str) -> None:
    """Raise `UserError` for the first network whose loss is not a finite number."""
    for repeat, value in zip(repeats, losses.tolist(), strict=True):
        if not math.isfinite(value):
            raise UserError(f"network {repeat}: the loss became {value} in {when}; try a smaller --lr")


def study_stack_size(config: StudyConfig, n_workers: int, n_networks: int, share: float) -> int:
    """`stack_size` for a new study of `n_networks`, by measurement on the first device.

    share: of the examples, what a network is trained on at a time.
    """
    device = devices.choose(config.machine.device)
    data = study_data.load(config.data, device, config.pixels)
    return stack_size(config, data, int(len(data) * share), max(1, -(-n_networks // n_workers)))


def stack_size(config: StudyConfig, data: StudyData, n: int, at_most: int) -> int:
    """How many networks to train as one: --stack if it is given and can be, else `fastest_stack_size`."""
    first = build_network(config, data, 0)
    refuse_stacked_dropout(first, config.machine.stack)
    return config.machine.stack or (1 if runs_alone(first) else fastest_stack_size(config, data, n, at_most))


def fastest_stack_size(config: StudyConfig, data: StudyData, n: int, at_most: int) -> int:
    """How many networks to train as one: the least measured time per network and step.

    n: examples of a network. Processor time on a CPU, so that other programs do not decide.
    """
    fastest, least = 1, math.inf
    for size in (c for c in CANDIDATES[data.device.type] if c <= at_most):
        try:
            seconds = seconds_per_step(config, data, n, size) / size
        except torch.OutOfMemoryError:  # of the device; a CPU's candidates are few
            break
        if seconds >= least:
            break
        fastest, least = size, seconds
        if size == 1 and seconds > SLOW_STEP:
            break
    return fastest


def seconds_per_step(config: StudyConfig, data: StudyData, n: int, size: int) -> float:
    """The least of three measured times of a training step of `size` networks."""
    rows = torch.arange(min(n, config.recipe.batch_size)).expand(size, -1).to(data.device)
    stacked = stack_networks([build_network(config, data, k) for k in range(size)]).train()
    optimizer = sgd(stacked, config.recipe)

    def one_step() -> None:
        windows = stacked_windows(data, rows.shape[1], 0, list(range(size)))
        train_step(optimizer, stacked.logits(data.batch(rows, windows)), data.labels[rows])

    cpu = data.device.type == "cpu"
    clock, wait = (time.process_time, int) if cpu else (time.perf_counter, torch.cuda.synchronize)
    one_step()
    least = math.inf
    for _ in range(3):
        wait()
        started = clock()
        one_step()
        wait()
        least = min(least, clock() - started)
        if least > size * SLOW_STEP:
            break
    return least
