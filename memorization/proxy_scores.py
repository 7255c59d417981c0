"""Scores of all proxies by networks trained on everything: the work of train_proxies."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Samples
from engram.memorization import study_data, training
from engram.memorization.proxies import NAMES, Proxy, create
from engram.memorization.stacked_networks import refuse_stacked_dropout, runs_alone
from engram.memorization.study_data import StudyData
from engram.memorization.train_proxies import ProxiesConfig
from engram.memorization.training import CohortTraining
from engram.memorization.worker_pool import NetworkProgress
from engram.utils import device, precision, scores

EARLY = ("el2n", "grand")
TRACKERS = [name for name, module in NAMES.items() if module == "trackers"]
SNAPSHOTS = [name for name in NAMES if name not in TRACKERS]


@dataclass
class ProxyResult:
    """What a proxy says by each network, and what that cost."""

    scores: list[NDArray[np.float64]] = field(default_factory=list)  # (n,) for each network
    seconds: list[float] = field(default_factory=list)

    def add(self, scores: NDArray[np.float64], seconds: float) -> None:
        """Append the scores by one more network."""
        self.scores.append(scores)
        self.seconds.append(seconds)


def train_and_write(config: ProxiesConfig) -> None:
    """Train the networks, evaluate all proxies on them, write the file and print the costs."""
    chosen_device = device.choose(config.machine.device)
    device.set_threads(config.machine.num_threads, config.network.backbone)
    data = study_data.load(config.data, chosen_device, config.pixels)
    results = evaluate_proxies(config, data)
    names = list(results)
    table = np.array([np.mean([finite(v) for v in results[name].scores], axis=0) for name in names])
    cost = np.array([np.mean(results[name].seconds) for name in names]) * 1000 / len(data)
    settings = config.flat() | {"computed_in": precision.resolve(config.machine.precision, chosen_device)}
    path = scores.write(
        config.proxies.out_filename, settings, names=np.array(names), proxies=table, cost=cost,
        **data.identity(),
    )  # fmt: skip
    for name, seconds in zip(names, cost, strict=True):
        print(f"{name:<24}{1000 * seconds:10.2f} ms per 1,000 examples")
    print("these costs leave out the training of the networks, which every proxy needs")
    print(f"proxies: {path}")


def finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores with +inf (never learned) as one more than the largest, so that means and ranks exist."""
    learned = np.isfinite(values)
    return np.where(learned, values, values[learned].max() + 1 if learned.any() else 0.0)


def evaluate_proxies(config: ProxiesConfig, data: StudyData) -> dict[str, ProxyResult]:
    """Proxy → its results by all networks; networks with dropout are trained one after the other."""
    repeats, first = list(range(config.proxies.n_networks)), training.build_network(config, data, 0)
    refuse_stacked_dropout(first, config.machine.stack)
    results: dict[str, ProxyResult] = {name: ProxyResult() for name in NAMES}
    results |= {f"early_{name}": ProxyResult() for name in EARLY}
    for cohort in [[repeat] for repeat in repeats] if runs_alone(first) else [repeats]:
        evaluate_cohort(config, data, cohort, results)
    return results


def evaluate_cohort(
    config: ProxiesConfig, data: StudyData, repeats: list[int], results: dict[str, ProxyResult]
) -> None:
    """Train networks as one and add what every proxy says of them to `results`."""
    n = len(data)
    learner = CohortTraining(config, data, repeats, torch.arange(n).expand(len(repeats), -1))
    watching = WatchingProxies(n, data.device, len(repeats))
    early = max(1, round(config.proxies.early * config.recipe.n_epochs))
    with NetworkProgress("train_proxies", len(repeats)) as progress:
        while not learner.finished:
            learner.run_epoch(watching.update)
            progress.advance(len(repeats) / learner.n_epochs)
            if learner.epoch == early:
                proxies = {f"early_{name}": create(name, n, data.device) for name in EARLY}
                rate(config, learner, proxies, results)
    with NetworkProgress("rating", len(repeats)) as progress:  # some proxies take longer than the training
        proxies = {name: create(name, n, data.device) for name in SNAPSHOTS}
        rate(config, learner, proxies, results, lambda: progress.advance(1 / len(proxies)))
    watching.rate(config, learner, results)


class WatchingProxies:
    """The proxies that watch training, one of each kind for each network, and the time that they take."""

    def __init__(self, n_train: int, device: torch.device, n_networks: int):
        self.trackers = {
            name: [create(name, n_train, device) for _ in range(n_networks)] for name in TRACKERS
        }
        self.seconds = dict.fromkeys(TRACKERS, 0.0)

    def update(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        """After a step on rows (K, n) with logits (K, n, C) and labels (K, n)."""
        for name, trackers in self.trackers.items():
            started = time.process_time()
            for k, tracker in enumerate(trackers):
                tracker.update(rows[k], logits[k], y[k])
            self.seconds[name] += time.process_time() - started

    def rate(self, config: ProxiesConfig, learner: CohortTraining, results: dict[str, ProxyResult]) -> None:
        """Add what the proxies say at the end of training; their cost is that of watching one epoch."""
        networks, data = as_modules(config, learner), learner.data
        for name, trackers in self.trackers.items():
            seconds = self.seconds[name] / len(networks) / learner.n_epochs
            for tracker, network in zip(trackers, networks, strict=True):
                values = tracker.scores(network, data.augment, samples(data)).cpu().numpy()
                results[name].add(values, seconds)


def samples(data: StudyData) -> Samples:
    """The training examples in the form that proxies take."""
    positions = torch.arange(len(data), device=data.device)
    return Samples(data.images, data.labels, torch.zeros_like(positions), positions)


def as_modules(config: ProxiesConfig, learner: CohortTraining) -> list[Backbone]:
    """The networks of a training as separate modules."""
    networks = [training.build_network(config, learner.data, repeat) for repeat in learner.repeats]
    for network, weights in zip(networks, learner.stack.state_dicts(), strict=True):
        network.load_state_dict(weights)
    return networks


def rate(
    config: ProxiesConfig, learner: CohortTraining, proxies: dict[str, Proxy],
    results: dict[str, ProxyResult], after_each: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Add what proxies say of the networks as they are now, and the time that it took."""
    data = learner.data
    for network in as_modules(config, learner):
        for name, proxy in proxies.items():
            started = time.process_time()
            values = proxy.scores(network, data.augment, samples(data)).cpu().numpy()
            results[name].add(values, time.process_time() - started)
            after_each()
