"""Seeding: one named random stream per purpose, all derived from `--seed`; no global generator.

Names in use: `init`, `order` (of samples within an epoch), `augmentation`, `buffer`, `method`,
`alignment` (features drawn of classes), `lora`, `transforms` (permutations and angles), `samples` (each
task's subset), `validation`, `evaluated tasks` and `evaluated samples`; `views` (augmented images whose
features are stored), of seed 0 in every run; in memorization, keyed by network, also `replay`; `curvature`
(its directions). Extra keys (task, epoch, block) make a stream of its own for each part of the run, so that a
resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *keys: int) -> int:
    """A 63-bit seed for one purpose; different purposes and keys are independent."""
    text = ":".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, *keys))


@contextmanager
def isolated(seed: int, purpose: str, *keys: int) -> Iterator[None]:
    """Inside, the global CPU generator, which layer initialisation uses, is seeded; then it is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, purpose, *keys))
        yield
