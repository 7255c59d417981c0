"""Replay: options that every rehearsal method shares, and drawing a batch from its buffer."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class ReplayOptions(OptionSet):
    """Size of the memory and of what is drawn from it."""

    buffer_size: int = option(200, "samples kept in the memory; 0 turns replay off", ge=0)
    minibatch_size: int = option(0, "samples replayed per step; 0 takes --batch_size", ge=0)


class Replayed(NamedTuple):
    """Samples drawn from a buffer: x (N, C, H, W) augmented float32, y (N,), task_id (N,)."""

    x: Tensor
    y: Tensor
    task_id: Tensor


def draw(method, draws: str = "distinct") -> Replayed | None:
    """A batch from `method.buffer`, augmented as the stream is; None while the buffer is empty."""
    if not method.buffer:
        return None
    n = replayed_per_step(method)
    return take(method, n if draws == "distinct" else min(n, len(method.buffer)), draws)


def replayed_per_step(method) -> int:
    """How many samples a step replays, as far as there are so many."""
    return method.options.minibatch_size or method.setup.train.batch_size


def take(method, n: int, draws: str, times: int = 1) -> Replayed:
    """`times` batches of `n` samples of `method.buffer`, one after the other, augmented as the stream is.

    draws: "distinct" (within a batch), or "replacement" (independent, so possibly repeated).
    """
    buffer = method.buffer
    if draws == "replacement":
        return augmented(method, buffer.sample_with_replacement(times * n))
    if times == 1:
        return augmented(method, buffer.sample(n))
    batches = [buffer.sample(n) for _ in range(times)]
    return augmented(method, {name: torch.cat([b[name] for b in batches]) for name in batches[0]})


def augmented(method, sample: dict[str, Tensor]) -> Replayed:
    """Samples from a buffer, their images augmented as the stream's are."""
    return Replayed(method.augment(sample["x"]), sample["y"], sample["task_id"])


def joined(batch: Batch, replayed: Replayed | None) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and task_id of stream and replay, one after the other, for a single forward pass."""
    if replayed is None:
        return batch.x, batch.y, batch.task_id
    pairs = zip((batch.x, batch.y, batch.task_id), replayed, strict=True)
    x, y, task_id = (torch.cat(pair) for pair in pairs)
    return x, y, task_id


def passes(method, *batches: Batch | Replayed) -> list[Tensor]:
    """(N_i, C) unmasked logits of several batches, each of which is a pass of its own.

    Without batch norm their samples do not affect each other, and one pass gives the same in less time.
    """
    net = method.net
    if net.mixes_samples or len(batches) == 1:
        return [net(batch.x, batch.task_id) for batch in batches]
    x, task_id = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "task_id"))
    return list(net(x, task_id).split([len(batch.y) for batch in batches]))


def store(method, batch: Batch, **extra: Tensor) -> None:
    """Offer the batch, with fields of the method's own, to `method.buffer`, in a task's first epoch only.

    Each sample is offered once: offering it again in later epochs would make the reservoir count
    repetitions as new data and keep copies of one image.
    """
    if method.epoch == 0:
        method.buffer.add(x=batch.x_raw, y=batch.y, task_id=batch.task_id, index=batch.index, **extra)
