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
from numpy.typing import NDArray

from engram.datasets import scenarios, sources
from engram.datasets.augment import Augment, as_asked
from engram.datasets.benchmark import Benchmark, Task
from engram.datasets.rotation import turned
from engram.datasets.streams import stored, with_validation
from engram.utils import seeding
from engram.utils.config import registry
from engram.utils.config.config import Config
from engram.utils.config.stream_options import StreamOptions
from engram.utils.errors import UserError

DEFAULTS = {"n_tasks": 1, "n_epochs": 1, "batch_size": 16, "lr": 0.1, "backbone": "mlp"}
DIGITS, ROUNDS = 9, 3
TURN = 60.0  # degrees that a digit turns by in one of its appearances, of which there are 2 · ROUNDS


def build(config: Config, device: torch.device) -> Benchmark:
    """The benchmark for a resolved configuration, on `device`."""
    refuse_task_flags(config.stream, registry.method_defaults(config.run.model))
    seed = config.run.seed
    source, training = with_validation(sources.mnist(config.run.data_dir), config.stream.validation, seed)
    order, degrees = arrange(source.train_y[training].numpy(), seed)
    train = torch.from_numpy(training[order])
    train_x = source.train_x.clone()
    train_x[train] = turned(train_x[train], torch.from_numpy(degrees))
    test = torch.from_numpy(np.flatnonzero(source.test_y.numpy() < DIGITS))
    test_x = source.test_x.clone()
    test_x[test] = turned(test_x[test], torch.from_numpy(angles_of_test_digits(source.test_y[test].numpy())))
    source = stored(replace(source, train_x=train_x, test_x=test_x), config, device)
    augment = as_asked(Augment(), config, source.train_x.shape[1:])
    class_order = scenarios.class_order(len(source.classes), seed, permute=False)
    tasks = [Task(0, tuple(range(DIGITS)), (0,), train, test, shuffled=False)]
    return Benchmark("mnist-360", "class-il", source, tasks, augment, class_order, seed, device)


def refuse_task_flags(stream: StreamOptions, chosen_by_method: dict[str, str]) -> None:
    """Raise `UserError` for a flag that means nothing here and that the method has not chosen itself."""
    given = {
        f"--n_tasks {stream.n_tasks}": stream.n_tasks != 1,
        "--multi_head": stream.multi_head,
        f"--scenario {stream.scenario}": stream.scenario not in (None, "class-il"),
        "--permute_classes": stream.permute_classes,
        "--class_order": stream.class_order,
        f"--train_classes {stream.train_classes}": stream.train_classes
        not in ("all", chosen_by_method.get("train_classes")),
    }
    for flag, is_given in given.items():
        if is_given:
            raise UserError(
                f"{flag}: mnist-360 is one stream of digits 0 to 8 without tasks; leave the flag out"
            )


def arrange(y: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(positions in `y` in the order of the stream, the angle in degrees of each)."""
    appearances, angles = {}, np.zeros(len(y))
    for digit in range(DIGITS):
        positions = np.flatnonzero(y == digit)
        drawn = torch.randperm(len(positions), generator=seeding.generator(seed, "samples", digit))
        positions = positions[drawn.numpy()]
        angles[positions] = (TURN * (digit - 1) + full_turn(len(positions))) % 360
        appearances[digit] = iter(np.array_split(positions, 2 * ROUNDS))
    pairs = [(digit, (digit + 1) % DIGITS) for _ in range(ROUNDS) for digit in range(DIGITS)]
    order = np.concatenate([mixed(next(appearances[one]), next(appearances[other])) for one, other in pairs])
    return order, angles[order]


def mixed(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both arrays in one, each in its own order, spread evenly: every stretch holds their shares."""
    time = np.concatenate([(np.arange(len(array)) + 0.5) / len(array) for array in (one, other)])
    return np.concatenate([one, other])[np.argsort(time, kind="stable")]


def angles_of_test_digits(y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Angle in degrees of each test digit: those of one class, in their order, go once round."""
    angles = np.zeros(len(y))
    for digit in range(DIGITS):
        positions = np.flatnonzero(y == digit)
        angles[positions] = full_turn(len(positions))
    return angles


def full_turn(n: int) -> NDArray[np.float64]:
    """(n,) angles in degrees, equally far apart, that go once round."""
    return 360 * np.arange(n) / n
