"""Train a few networks on everything and write what every proxy of memorization says of each example.

    python -m memorization.train_proxies --dataset_name digits --out_filename runs/mem/proxies.npz

The file holds `names` (P,), `proxies` (P, n) (higher: more memorized; the mean over networks), `cost`
(P,) in seconds per 1,000 examples (of proxies that watch training: per 1,000 examples and epoch) and what
ties it to the data set. EL2N and GraNd are also taken early, as their paper does.
"""

import sys
import time
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.cli import MACHINE, STUDY, Options
from engram.utils.config.options import OptionSet, option

EARLY = ("el2n", "grand")


@dataclass(frozen=True)
class ProxyOptions(OptionSet):
    """How many networks, and what is written."""

    out_filename: str | None = option(None, "file to write, .npz (required)")
    n_networks: int = option(3, "networks, each trained on all examples", ge=1)
    early: float = option(0.2, "part of the epochs after which the early versions are taken", gt=0, lt=1)


GROUPS = {"proxies": ProxyOptions, **STUDY, **MACHINE}


def run(argv: list[str]) -> None:
    """Train, watch, rate, write."""
    options = cli.parse("train_proxies", __doc__.split("\n")[0], GROUPS, argv)
    cli.require(options.proxies, "out_filename")
    import numpy as np

    from engram.memorization import study_data as pools
    from engram.memorization.eval_splits import identity
    from engram.utils import device, scores

    where = device.choose(options.machine.device)
    device.set_threads(0, options.network.model_name)
    pool = pools.load(options, where)
    found = observe(options, pool)
    names = list(found)
    table = np.array([np.mean([finite(values) for values in found[n]["scores"]], axis=0) for n in names])
    cost = np.array([np.mean(found[n]["seconds"]) for n in names]) * 1000 / len(pool)
    path = scores.write(
        options.proxies.out_filename, options.flat(), names=np.array(names), proxies=table, cost=cost,
        **identity(pool),
    )  # fmt: skip
    for name, seconds in zip(names, cost, strict=True):
        print(f"{name:<24}{1000 * seconds:10.2f} ms per 1,000 examples")
    print(f"proxies: {path}")


def finite(values):
    """Never learned (+inf) becomes one more than the largest score, so that means and ranks exist."""
    import numpy as np

    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, known.max() + 1 if len(known) else 0.0)


def observe(options: Options, pool) -> dict[str, dict[str, list]]:
    """Proxy → its scores (n,) by each network and its seconds; networks with dropout follow one another."""
    from engram.memorization import training
    from engram.memorization.stacked_networks import draws_masks, refuse_masks

    repeats, first = list(range(options.proxies.n_networks)), training.network(options, pool, 0)
    refuse_masks(first, options.machine.stack)
    cohorts = [[repeat] for repeat in repeats] if draws_masks(first) else [repeats]
    found: dict[str, dict[str, list]] = {}
    for cohort in cohorts:
        for name, observed in observe_cohort(options, pool, cohort).items():
            own = found.setdefault(name, {"scores": [], "seconds": []})
            for key, values in observed.items():
                own[key] += values
    return found


def observe_cohort(options: Options, pool, repeats: list[int]) -> dict[str, dict[str, list]]:
    """`observe` for networks trained as one."""
    import torch

    from engram.memorization import training, worker_pool
    from engram.memorization.proxies import NAMES, create

    n = len(pool)
    rows = torch.arange(n).expand(len(repeats), -1)
    learner = training.Training(options, pool, training.Cohort(repeats, rows))
    along = [name for name, module in NAMES.items() if module == "trackers"]
    after = [name for name in NAMES if name not in along]
    trackers = {name: [create(name, n, pool.device) for _ in repeats] for name in along}
    seconds = dict.fromkeys(along, 0.0)

    def watch(rows, logits, y) -> None:
        for name, own in trackers.items():
            started = time.process_time()
            for k, tracker in enumerate(own):
                tracker.update(rows[k], logits[k], y[k])
            seconds[name] += time.process_time() - started

    found: dict[str, dict[str, list]] = {}
    early = max(1, round(options.proxies.early * options.recipe.n_epochs))
    with worker_pool.Bar("train_proxies", len(repeats)) as bar:
        while not learner.finished:
            learner.run_epoch(watch)
            bar.advance(len(repeats) / learner.n_epochs)
            if learner.epoch == early:
                first = {f"early_{name}": create(name, n, pool.device) for name in EARLY}
                rate(options, pool, learner, first, found)
    with worker_pool.Bar("rating", len(repeats)) as bar:  # some proxies take longer than the training
        proxies = {name: create(name, n, pool.device) for name in after}
        rate(options, pool, learner, proxies, found, lambda: bar.advance(1 / len(proxies)))
    networks = as_modules(options, pool, learner)
    for name, own in trackers.items():
        pairs = zip(own, networks, strict=True)
        rated = [t.scores(net, pool.augment, samples(pool)).cpu().numpy() for t, net in pairs]
        each = seconds[name] / len(repeats) / learner.n_epochs
        found[name] = {"scores": rated, "seconds": [each] * len(repeats)}
    return {name: found[name] for name in [*NAMES, *(f"early_{n}" for n in EARLY)]}


def samples(pool):
    """The pool in the form that proxies take."""
    import torch

    from engram.datasets.benchmark import Samples

    positions = torch.arange(len(pool), device=pool.device)
    return Samples(pool.images, pool.labels, torch.zeros_like(positions), positions)


def as_modules(options: Options, pool, learner) -> list:
    """The networks of a training, one by one."""
    from engram.memorization import training

    networks = []
    for repeat, weights in zip(learner.cohort.repeats, learner.stack.networks(), strict=True):
        networks.append(training.network(options, pool, repeat))
        networks[-1].load_state_dict(weights)
    return networks


def rate(options: Options, pool, learner, proxies: dict, found: dict, rated=lambda: None) -> None:
    """Add to `found` what proxies of the networks as they stand say, and their cost; `rated` after each."""
    for net in as_modules(options, pool, learner):
        for name, proxy in proxies.items():
            started = time.process_time()
            scores = proxy.scores(net, pool.augment, samples(pool)).cpu().numpy()
            own = found.setdefault(name, {"scores": [], "seconds": []})
            own["scores"].append(scores)
            own["seconds"].append(time.process_time() - started)
            rated()


if __name__ == "__main__":
    sys.exit(cli.main(run))
