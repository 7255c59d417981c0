"""Speed of the replay buffers against a loop over single samples, in one process and thread.

Part `buffer` of `python -m scripts.bench`: about two minutes on one core.

Both hold 5,120 CIFAR images; a step offers 64 images and takes 64, ready for the network. The loop is what
replay code usually does (mammoth's buffer and transforms): float images, a random slot and a copy of every
field for each sample; drawn images go one by one through torchvision's crop, flip and normalisation. Ours:
uint8 images, one copy and one augmentation for the batch.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engram.datasets.augment import Augment
from engram.scripts.bench.timing import Figure
from engram.utils.buffers.reservoir import Buffer
from engram.utils.buffers.weighted_reservoirs import BalancedBuffer, LossAwareBalancedBuffer

SIZE, BATCH, N_CLASSES, SHAPE = 5120, 64, 10, (3, 32, 32)
CIFAR = Augment((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), crop_padding=4, flip=True)


class LoopBuffer:
    """A reservoir that handles one sample at a time."""

    def __init__(self, transform: Callable[[Tensor], Tensor] | None):
        self.transform, self.n_seen = transform, 0
        self.draws = torch.Generator().manual_seed(0)
        self.x = torch.zeros(SIZE, *SHAPE)
        self.y, self.task_id, self.index = (torch.zeros(SIZE, dtype=torch.long) for _ in range(3))

    def add(self, x: Tensor, y: Tensor, task_id: Tensor, index: Tensor) -> None:
        """Offer a batch to the reservoir, sample by sample."""
        for i in range(len(y)):
            slot = self.n_seen
            if slot >= SIZE:
                slot = int(torch.randint(slot + 1, (1,), generator=self.draws))
            self.n_seen += 1
            if slot < SIZE:
                self.x[slot], self.y[slot] = x[i].to(self.x.device), y[i].to(self.x.device)
                self.task_id[slot], self.index[slot] = task_id[i], index[i]

    def take(self, n: int = BATCH) -> tuple[Tensor, ...]:
        """At most `n` distinct samples, images stacked one by one."""
        rows = torch.randperm(min(self.n_seen, SIZE), generator=self.draws)[:n]
        x = torch.stack([self.transform(self.x[i]) if self.transform else self.x[i] for i in rows])
        return x, self.y[rows], self.task_id[rows], self.index[rows]


class Ours:
    """A buffer of ours behind the same two calls."""

    def __init__(self, buffer: Buffer, augment: Augment | None):
        self.buffer, self.augment, self.draws = buffer, augment, torch.Generator().manual_seed(0)

    def add(self, **fields: Tensor) -> None:
        """Offer a batch; where a loss is wanted the sample's position stands for it."""
        scored = isinstance(self.buffer, LossAwareBalancedBuffer)
        self.buffer.add(**fields, **({"score": fields["index"].float()} if scored else {}))

    def take(self) -> dict[str, Tensor]:
        """A batch of distinct samples, augmented together."""
        sample = self.buffer.sample(BATCH)
        return sample | {"x": self.augment(sample["x"], self.draws)} if self.augment else sample


def batches(n: int, floats: bool) -> list[dict[str, Tensor]]:
    """`n` batches of random images, uint8 or as they come out of a usual loader."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, BATCH, *SHAPE), dtype=torch.uint8, generator=draws)
    x = x.float() / 255 if floats else x
    y = torch.randint(N_CLASSES, (n, BATCH), generator=draws)
    index = torch.arange(n * BATCH).view(n, BATCH)
    parts = zip(x, y, index, strict=True)
    return [{"x": a, "y": b, "task_id": torch.zeros_like(b), "index": c} for a, b, c in parts]


def pil_transform(augment: Augment, side: int) -> Callable[[Tensor], Tensor]:
    """torchvision's transforms of one image (C, side, side), which `augment` does to a whole batch."""
    from torchvision import transforms

    steps: list[Callable] = [transforms.ToPILImage()]
    if augment.crop_padding:
        steps += [transforms.RandomCrop(side, augment.crop_padding), transforms.RandomHorizontalFlip()]
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(augment.mean, augment.std)]
    )


def seconds(buffer, n_seen: int, stream: list[dict[str, Tensor]], taking: bool = True) -> float:
    """Per step over the stream, for a full buffer that has seen `n_seen` samples."""
    (buffer.buffer if isinstance(buffer, Ours) else buffer).n_seen = n_seen
    started = time.process_time()  # the processor's time: other programs on the machine do not count
    for batch in stream:
        buffer.add(**batch)
        if taking:
            buffer.take()
    return (time.process_time() - started) / len(stream)


def filled(buffer, stream: list[dict[str, Tensor]]):
    """The buffer, once it is full."""
    for start in range(0, SIZE, BATCH):
        buffer.add(**stream[start // BATCH % len(stream)])
    return buffer


def against_the_loop(augmented: bool, n_seen: int, rounds: int = 7, n: int = 20) -> Figure:
    """Compare both buffers; every round starts at the same step, since a later one accepts fewer samples."""
    streams = batches(n, floats=False), batches(n, floats=True)
    reservoir = Buffer(SIZE, torch.Generator().manual_seed(0), "cpu")
    sides = (
        Ours(reservoir, CIFAR if augmented else None),
        LoopBuffer(pil_transform(CIFAR, 32) if augmented else None),
    )
    pairs = [(filled(side, stream), n_seen, stream) for side, stream in zip(sides, streams, strict=True)]
    times = [[seconds(*pair) for pair in pairs] for _ in range(rounds + 1)][1:]  # the first warms up
    ours, theirs = (statistics.median(t[i] for t in times) for i in (0, 1))
    ratio = statistics.median(b / a for a, b in times)
    what = "add + sample + augment" if augmented else "add + sample, images as stored,"
    text = (
        f"replay, {what} {BATCH} CIFAR images, {SIZE:,} in memory, {n_seen:,} seen: {ratio:.1f}x the steps/s "
        f"of a loop over samples ({1 / ours:,.0f} against {1 / theirs:,.0f})"
    )
    numbers = {"ratio": 1 / ratio, "steps_per_s": 1 / ours, "their_steps_per_s": 1 / theirs}
    return Figure(f"replay / loop, {what} {n_seen:,} seen", text, numbers)


def eviction(kind: Callable[[], Buffer], name: str, n: int = 20) -> Figure:
    """What choosing the victims costs, for each sample that enters and over a whole first epoch."""
    stream = batches(n, floats=False)
    draws = torch.Generator().manual_seed(0)
    chooser, plain = (filled(Ours(b, None), stream) for b in (kind(), Buffer(SIZE, draws, "cpu")))
    times = [[seconds(b, SIZE, stream, taking=False) for b in (chooser, plain)] for _ in range(6)][1:]
    per_sample = statistics.median(a - b for a, b in times) / BATCH
    entering = sum(SIZE / k for k in range(SIZE + 1, 50_001))
    text = (
        f"{name}: {1e6 * per_sample:.0f} µs for each sample that enters a full memory of {SIZE:,}, "
        f"{per_sample * entering:.1f} s over the {entering:,.0f} of 50,000 that do"
    )
    return Figure(
        f"eviction, {name}", text, {"us_per_sample": 1e6 * per_sample, "epoch_s": per_sample * entering}
    )


def buffer_speed() -> list[Figure]:
    """Measure every comparison of this file on one thread."""
    torch.set_num_threads(1)
    figures = [against_the_loop(augmented, n) for augmented in (True, False) for n in (SIZE, 50_000)]
    for kind in (BalancedBuffer, LossAwareBalancedBuffer):
        draws = torch.Generator().manual_seed(0)
        figures.append(eviction(lambda k=kind, d=draws: k(SIZE, N_CLASSES, d, "cpu"), kind.__name__))
    return figures
