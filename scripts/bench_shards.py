"""Images on disk: step time along a stream of many shards, memory, and speed against images in memory.

    python scripts/bench_shards.py --folder /a/disk/with/room            10 GB, some minutes
    python scripts/bench_shards.py --folder /a/disk/with/room --gb 0.5   a try-out

Writes synthetic 3x224x224 images as shards, splits their classes into tasks, and draws every batch of every
task as training does: random order, crop and flip, but no network, so nothing hides the reading. A task's
images lie all over the files. The first pass is cold: the files are dropped from the system's cache before.
It looks at each image, which holds its own number. Memory is RssAnon: what the process itself takes, without
the files' pages, which the system may drop at any time. The files are removed at the end.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from datasets import shards
from datasets.augment import Augment
from datasets.benchmark import Benchmark, class_incremental
from datasets.sources import Source
from utils.config import resolve

SHAPE, N_CLASSES, N_TEST, CHUNK = (3, 224, 224), 100, 200, 64
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

    def fill(split: str, put: shards.Put) -> None:
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


def own_memory() -> int:
    """Bytes of RssAnon now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("bench_shards.py needs Linux's /proc")


def measure(benchmark: Benchmark, epoch: int, batch_size: int, look: bool) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each step over all tasks, and RssAnon after each."""
    seconds, memory = [], []
    for task in benchmark.tasks:
        started = time.perf_counter()
        for batch in benchmark.batches(task, epoch, batch_size):
            seconds.append(time.perf_counter() - started)
            memory.append(own_memory())
            if look and not torch.equal(numbers(batch.x_raw), batch.index):
                raise SystemExit(f"step {len(seconds)}: other images than were asked for")
            started = time.perf_counter()
    return np.array(seconds), np.array(memory)


def report(name: str, seconds: np.ndarray, memory: np.ndarray, before: int, n_bytes: int) -> str:
    """Figures of a pass over `n_bytes` of images by a process that took `before` bytes itself."""
    tenth = max(1, len(seconds) // 10)
    middle = (len(seconds) - tenth) // 2
    parts = [slice(0, tenth), slice(middle, middle + tenth), slice(len(seconds) - tenth, None)]
    medians, means = ([float(f(seconds[part])) for part in parts] for f in (np.median, np.mean))
    flat = [
        f"{name} / first tenth {medians[i] / medians[0]:.2f} (means: {means[i] / means[0]:.2f})"
        for i, name in ((1, "middle"), (2, "last"))
    ]
    more = float(memory.max()) - before
    peaks = [float(memory[part].max()) for part in parts]
    return (
        f"{name}: {len(seconds):,} steps, {n_bytes / IMAGE / seconds.sum():,.0f} images/s; median step "
        f"{1e3 * medians[0]:.1f} ms in the first tenth; {', '.join(flat)}\n"
        f"  own memory at most {memory.max() / 1e6:,.0f} MB, {more / 1e6:,.0f} of them since before the "
        f"first batch: {more / n_bytes:.4f} of the images' bytes; "
        f"last / first tenth {peaks[2] / peaks[0]:.3f}"
    )


def against_memory(source: Source, n: int, batch_size: int, rounds: int = 7) -> str:
    """The same `n` images from disk and from memory, in alternating rounds."""
    rows = torch.arange(n)
    few = replace(source, train_x=source.train_x.part(rows), train_y=source.train_y[:n])
    held = replace(few, train_x=few.train_x[:], test_x=few.test_x[:])
    sides = [stream(source, 2) for source in (few, held)]
    times = []
    for epoch in range(rounds + 1):
        times.append([measure(side, epoch, batch_size, look=False)[0].sum() for side in sides])
    ratio = statistics.median(memory / disk for disk, memory in times[1:])  # the first warms up
    return (
        f"{n:,} images from disk against from memory: {ratio:.2f}x the images/s (median of {rounds} rounds)"
    )


def main() -> None:
    """Write, measure, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gb", type=float, default=10.0, help="size of the training images")
    parser.add_argument("--folder", type=Path, default=Path("."), help="the files go to a new folder in it")
    parser.add_argument("--n_tasks", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    n, place = (
        max(2 * N_CLASSES, int(args.gb * 1e9 / IMAGE)),
        Path(mkdtemp(prefix="shards-", dir=args.folder)),
    )
    try:
        started = time.perf_counter()
        source = make(place / "synthetic.shards", n)
        spent, n_bytes = time.perf_counter() - started, n * IMAGE
        n_files = len(source.train_x.files)
        print(
            f"{n:,} images, {n_bytes / 1e9:.2f} GB in {n_files} files, written in {spent:.0f} s", flush=True
        )
        benchmark, before = stream(source, args.n_tasks), own_memory()
        for epoch, name in enumerate(("cold", "again")):
            if not epoch:
                forget(place / "synthetic.shards")
            found = measure(benchmark, epoch, args.batch_size, look=not epoch)
            print(report(name, *found, before, n_bytes), flush=True)
        print(against_memory(source, min(n, 2000), args.batch_size), flush=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
