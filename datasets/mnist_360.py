"""MNIST-360: two digits at a time, turning all the while, in one stream that has no tasks (class-IL).

Source: Buzzega et al. 2020 (DER, arXiv 2004.07211), general continual learning. Digits 0 to 8 (a turned 6 is
a 9) come in pairs, (0, 1), (1, 2), ..., (8, 0), three times round; every appearance of a digit takes a sixth
of its samples, mixed evenly with the other digit's. Each sample is shown once, and digit d's k-th of N is
turned by 60 (d − 1) + 360 k / N degrees: a pair turns together and no two samples of a digit alike. Test
digits are turned by 360 i / n. Methods that need task boundaries are refused; R has one element.
Differs from mammoth: each sample is shown once, as the paper says (its code draws with replacement); a
batch that reaches from one pair into the next is not cut short.
"""

from dataclasses import replace

import numpy as np
import torch

from engram.datasets import scenarios, sources
from engram.datasets.augment import Augment, normalised_as_asked
from engram.datasets.benchmark import Benchmark, Task, with_validation
from engram.datasets.rotation import turned
from engram.datasets.storage import placed
from engram.utils import seeding
from engram.utils.errors import UserError

DEFAULTS = {"n_tasks": 1, "n_epochs": 1, "batch_size": 16, "lr": 0.1, "backbone": "mlp"}
DIGITS, ROUNDS = 9, 3
TURN = 60.0  # degrees that a digit turns by in one of its appearances, of which there are 2 · ROUNDS


def build(config, device) -> Benchmark:
    """The stream for a resolved configuration, on `device`."""
    refuse(config.stream)
    seed = config.run.seed
    source, kept = with_validation(sources.mnist(config.run.data_dir), config.stream.validation, seed)
    index, angles = arrange(source.train_y[kept].numpy(), seed)
    index, angles = torch.from_numpy(kept[index]), torch.from_numpy(angles)
    train_x = source.train_x.clone()
    train_x[index] = turned(train_x[index], angles)
    test = torch.from_numpy(np.flatnonzero(source.test_y.numpy() < DIGITS))
    test_x = source.test_x.clone()
    test_x[test] = turned(test_x[test], torch.from_numpy(round_the_circle(source.test_y[test].numpy())))
    source = placed(replace(source, train_x=train_x, test_x=test_x), config, device)
    augment = normalised_as_asked(Augment(), config, source.train_x.shape[1])
    order = scenarios.class_order(len(source.classes), seed, permute=False)
    tasks = [Task(0, tuple(range(DIGITS)), (0,), index, test, shuffled=False)]
    return Benchmark("mnist-360", "class-il", source, tasks, augment, order, seed, device)


def refuse(stream) -> None:
    """Say which flags a stream without tasks has no place for."""
    given = {
        f"--n_tasks {stream.n_tasks}": stream.n_tasks != 1,
        "--multi_head": stream.multi_head,
        f"--scenario {stream.scenario}": stream.scenario not in (None, "class-il"),
        "--permute_classes": stream.permute_classes,
        "--class_order": stream.class_order,
    }
    for flag, is_given in given.items():
        if is_given:
            raise UserError(
                f"{flag}: mnist-360 is one stream of digits 0 to 8 without tasks; leave the flag out"
            )


def arrange(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions in `y` in the order of the stream, the angle in degrees of each)."""
    coming, angles = {}, np.zeros(len(y))
    for digit in range(DIGITS):
        own = np.flatnonzero(y == digit)
        drawn = torch.randperm(len(own), generator=seeding.generator(seed, "samples", digit))
        own = own[drawn.numpy()]
        angles[own] = (TURN * (digit - 1) + 360 * np.arange(len(own)) / len(own)) % 360
        coming[digit] = iter(np.array_split(own, 2 * ROUNDS))
    pairs = [(digit, (digit + 1) % DIGITS) for _ in range(ROUNDS) for digit in range(DIGITS)]
    order = np.concatenate([mixed(next(coming[one]), next(coming[other])) for one, other in pairs])
    return order, angles[order]


def mixed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Both, each in its own order, spread evenly: every stretch holds their shares."""
    place = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in (one, other)])
    return np.concatenate([one, other])[np.argsort(place, kind="stable")]


def round_the_circle(y: np.ndarray) -> np.ndarray:
    """Angle in degrees of each test digit: those of one class, in their order, go once round."""
    angles = np.zeros(len(y))
    for digit in range(DIGITS):
        own = np.flatnonzero(y == digit)
        angles[own] = 360 * np.arange(len(own)) / len(own)
    return angles
