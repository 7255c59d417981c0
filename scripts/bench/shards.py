"""Images on disk: step time along a stream of many shards, memory, and speed against images in memory.

    python scripts/bench/shards.py --folder /a/disk/with/room            10 GB, some minutes
    python scripts/bench/shards.py --folder /a/disk/with/room --gb 0.5   a try-out

Writes synthetic 3x224x224 images as shards, splits their classes into tasks, and draws every batch of every
task as training does: random order, crop and flip, but no network, so nothing hides the reading. A task's
images lie all over the files. The first pass is cold: the files are dropped from the system's cache before.
It looks at each image, which holds its own number. Beside every fourth step one from images in memory is
timed: on a machine with other work the ratio of the two says more than milliseconds. Memory is RssAnon: what
the process itself takes, without the files' pages, which the system may drop at any time. The files are
removed at the end.
"""

import argparse
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

from engram.datasets import shards
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Batch, Benchmark
from engram.datasets.images import Put
from engram.datasets.sources import Source
from engram.datasets.streams import class_incremental
from engram.scripts.bench.timing import process_bytes
from engram.utils.config.config import resolve
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError

SHAPE, N_CLASSES, N_TEST, CHUNK = (3, 224, 224), 100, 200, 64
EVERY = 4
IMAGE = int(np.prod(SHAPE))
AUGMENT = Augment((0.5,) * 3, (0.5,) * 3, crop_padding=28, flip=True)


def numbered(start: int, n: int) -> np.ndarray:
    """Noise (n, *SHAPE); the first 8 bytes of an image are its number."""
    images = np.frombuffer(np.random.default_rng(start).bytes(n * IMAGE), np.uint8).reshape(n, IMAGE).copy()
    images[:, :8] = np.arange(start, start + n).view(np.uint8).reshape(n, 8)
    return images.reshape(n, *SHAPE)


def numbers(raw: torch.Tensor) -> torch.Tensor:
    """(n,) what `numbered` wrote into images (n, C, H, W)."""
    return raw.flatten(1)[:, :8].contiguous().view(torch.int64).flatten()


def make(folder: Path, n: int) -> Source:
    """A source of `n` training images in shards; an image's class is its number modulo `N_CLASSES`."""
    labels = {"train": torch.arange(n) % N_CLASSES, "test": torch.arange(N_TEST) % N_CLASSES}

    def fill(split: str, put: Put) -> None:
        for start in range(0, len(labels[split]), CHUNK):
            put(start, numbered(start, min(CHUNK, len(labels[split]) - start)))

    names = tuple(map(str, range(N_CLASSES)))
    shards.write(folder, "synthetic", SHAPE, names, labels, fill)
    data = shards.read(folder, "synthetic")
    return Source("synthetic", data["train_x"], data["train_y"], data["test_x"], data["test_y"], names)


def stream(source: Source, n_tasks: int) -> Benchmark:
    """The tasks over a source."""
    config = resolve([("bench", {"model": "sgd", "n_tasks": n_tasks, "images": "memory"})])
    return class_incremental("synthetic", source, AUGMENT, config, "cpu")


def forget(folder: Path) -> None:
    """Drop the files from the system's cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


class Pass:
    """Seconds and RssAnon of each step along a stream; every `EVERY` steps one from memory beside it."""

    def __init__(self, benchmark: Benchmark, held: Benchmark, epoch: int, batch_size: int, look: bool):
        self.steps: list[tuple[int, float, float]] = []  # RssAnon, seconds from disk, from memory
        beside = (b for epoch in count() for b in held.batches(held.tasks[0], epoch, batch_size))
        last = seconds_to_next(beside)[0]
        self.before = process_bytes("RssAnon")
        for task in benchmark.tasks:
            batches = benchmark.batches(task, epoch, batch_size)
            for _ in range(benchmark.n_steps(task, batch_size)):
                spent, batch = seconds_to_next(batches)
                if look and not torch.equal(numbers(batch.x_raw), batch.index):
                    raise SystemExit(f"step {len(self.steps)}: other images than were asked for")
                if len(self.steps) % EVERY == 0:
                    last = seconds_to_next(beside)[0]
                self.steps.append((process_bytes("RssAnon"), spent, last))

    def report(self, name: str, n_bytes: int) -> str:
        """Figures of a pass over `n_bytes` of images."""
        memory, disk, held = np.array(self.steps).T
        size = max(1, len(disk) // 10)
        starts = (0, (len(disk) - size) // 2, len(disk) - size)
        tenths = [slice(start, start + size) for start in starts]
        times = [float(np.median(disk[tenth])) for tenth in tenths]
        ratios = [float(np.median(disk[tenth]) / np.median(held[tenth])) for tenth in tenths]
        whole, more = float(np.median(disk) / np.median(held)), float(memory.max()) - self.before
        beside = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        return (
            f"{name}: {len(disk):,} steps, {n_bytes / IMAGE / disk.sum():,.0f} images/s; median step in the "
            f"first, middle and last tenth {', '.join(f'{1e3 * t:.1f}' for t in times)} ms\n"
            f"  of the steps from memory beside them: {beside}; all along {whole:.2f}; middle / first "
            f"{ratios[1] / ratios[0]:.2f}, last / first {ratios[2] / ratios[0]:.2f}\n"
            f"  own memory at most {memory.max() / 1e6:,.0f} MB, {more / 1e6:,.0f} of them since before the "
            f"first batch: {more / n_bytes:.4f} of the images' bytes; last / first tenth "
            f"{memory[tenths[2]].max() / memory[tenths[0]].max():.3f}"
        )


def seconds_to_next(batches: Iterator) -> tuple[float, Batch]:
    """How long the next batch takes."""
    started = time.perf_counter()
    batch = next(batches)
    return time.perf_counter() - started, batch


def in_memory(source: Source, n: int) -> Source:
    """The first `n` images, held in memory."""
    few = source.train_x.subset(torch.arange(n))
    return replace(source, train_x=few[:], train_y=source.train_y[:n], test_x=source.test_x[:])


def throughput(source: Source, n: int, batch_size: int, rounds: int = 7) -> str:
    """The same `n` images from disk and from memory, in alternating rounds, nothing else going on."""
    held = in_memory(source, n)
    disk = replace(held, train_x=source.train_x.subset(torch.arange(n)), test_x=source.test_x)
    sides, times = [stream(side, 2) for side in (disk, held)], []
    for epoch in range(rounds + 1):
        for side in sides:
            started = time.perf_counter()
            n_batches = sum(1 for task in side.tasks for _ in side.batches(task, epoch, batch_size))
            times.append((time.perf_counter() - started) / n_batches)
    ratio = statistics.median(np.array(times[3::2]) / np.array(times[2::2]))  # the first round warms up
    return (
        f"{n:,} images from disk against from memory: {ratio:.2f}x the images/s (median of {rounds} rounds)"
    )


@guarded
def main(argv: list[str] | None = None) -> None:
    """Write the images, measure both passes, print, and remove the images."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=10.0, help="size of the training images")
    parser.add_argument("--folder", type=Path, default=Path("."), help="the files go to a new folder in it")
    parser.add_argument("--n_tasks", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args(argv)
    check_bounds(args, n_tasks=COUNT, batch_size=COUNT)
    if not 0 < args.gb < math.inf:
        raise UserError(f"--gb {args.gb:g}: must be > 0 and finite")
    check_folder(args.folder, "--folder")
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    n = max(2 * N_CLASSES, int(args.gb * 1e9 / IMAGE))
    few = min(n, 10 * args.batch_size)
    folder = Path(mkdtemp(prefix="shards-", dir=args.folder))
    try:
        started = time.perf_counter()
        source = make(folder / "synthetic.shards", n)
        spent, n_bytes = time.perf_counter() - started, n * IMAGE
        n_files = len(source.train_x.files)
        print(
            f"{n:,} images, {n_bytes / 1e9:.2f} GB in {n_files} files, written in {spent:.0f} s", flush=True
        )
        benchmark, held = stream(source, args.n_tasks), stream(in_memory(source, few), 1)
        for epoch, name in enumerate(("cold", "again")):
            if not epoch:
                forget(folder / "synthetic.shards")
            steps = Pass(benchmark, held, epoch, args.batch_size, look=not epoch)
            print(steps.report(name, n_bytes), flush=True)
        print(throughput(source, min(n, 2000), args.batch_size), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
