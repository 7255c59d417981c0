"""Examples per second of the MER paper's methods on MNIST Rotations with 5,120 memories.

    python scripts/bench/mer.py                        every method
    python scripts/bench/mer.py gem meralg1            some of them
    python scripts/bench/mer.py --update RESULTS.md     and put the table between the file's markers

Training steps only, on one thread, in the middle of the stream (task 10 of 20, memories full). "eager" is
the same method file without the compiled kernel, in the same process, alternating with it; methods without
a kernel have one figure. "original" are the authors' codes, measured on another machine (2-core Xeon
2.5 GHz, torch 2.15; their draws from memory made plain index draws), evaluation included.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.method import Method
from engram.scripts.analysis.table import check_update, update
from engram.scripts.bench.timing import Names, cpu_name
from engram.utils import device as devices
from engram.utils.config.config import resolve
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.door import guarded
from engram.utils.training.environment import versions
from engram.utils.training.optimizers import build_optimizer

TASK = 10
# Method → flags, steps measured at a time, the original's examples/s.
MARKER = "mer speed"  # of the table in the file of --update
CASES = {
    "online": ("--model online --lr 0.0003", 500, "707-1,025"),
    "independent": ("--model independent --lr 0.01", 200, "390"),
    "taskinput": ("--model taskinput --lr 0.01", 200, "800"),
    "ewc": ("--model ewc --ewc_variant mer --lr 0.001 --n_memories 10 --e_lambda 100", 200, "38-65"),
    "agem": ("--model agem --lr 0.01 --buffer_size 5120 --minibatch_size 256", 50, "–"),
    "gem": ("--model gem --lr 0.01 --buffer_size 5120 --memory_strength 1", 10, "–"),
    "eralg4": (
        "--model er --er_variant alg4 --lr 0.1 --buffer_size 5120 --minibatch_size 25",
        200,
        "150-210",
    ),
    "eralg5": ("--model er --er_variant alg5 --lr 0.03 --buffer_size 5120 --minibatch_size 100", 100, "5.4"),
    "meralg6": (
        "--model mer --mer_variant alg6 --lr 0.03 --gamma 0.1 --buffer_size 5120 --minibatch_size 100",
        50,
        "58",
    ),
    "meralg7": (
        "--model mer --mer_variant alg7 --lr 0.03 --gamma 0.03 --buffer_size 5120 --minibatch_size 100 "
        "--current_weight 5",
        50,
        "2.5",
    ),
    "meralg1": (
        "--model mer --mer_variant alg1 --lr 0.03 --beta 0.03 --gamma 1 --buffer_size 5120 "
        "--minibatch_size 100 --batches_per_example 10",
        5,
        "0.32",
    ),
}


def prepared(flags: str, data_dir: str) -> tuple[Method, Iterator]:
    """A method in the middle of the stream, its memories full, and the batches that come next."""
    words = flags.replace("--", "").split()
    values = dict(zip(words[::2], words[1::2], strict=True))
    fixed = {"dataset": "mnist-rotations", "data_dir": data_dir, "device": "cpu", "num_threads": 1}
    config = resolve([("bench", {**fixed, **values})])
    method = build_method(config, devices.choose("cpu"), proxies.create)
    benchmark = method.setup.benchmark
    for task in benchmark.tasks[: TASK + 1]:
        method.enter(task)
        method.begin_task(task)
        method.optimizer = build_optimizer(method.trainable().values(), config.train)
        if task.id < TASK:
            samples = benchmark.train(task)
            fill(method, task.id, samples)
            method.end_task(task)
    return method, (b for epoch in range(10**6) for b in benchmark.batches(benchmark.tasks[TASK], epoch, 1))


def fill(method: Method, task: int, samples) -> None:
    """What the method would keep of a task."""
    fields = dict(zip(("x", "y", "task_id", "index"), samples, strict=True))
    if hasattr(method, "buffer"):
        ring = (task,) if hasattr(method.buffer, "per_task") else ()
        method.buffer.add(*ring, **fields)
        method.age = method.age + len(samples.y) if hasattr(method, "age") else 0
    if hasattr(method, "first"):
        n = method.options.n_memories
        method.first = {name: field[:n] for name, field in samples._asdict().items()}


def rate(method: Method, batches: Iterator, n: int) -> float:
    """Examples per second over the next `n` steps."""
    taken = [next(batches) for _ in range(n)]
    started = time.perf_counter()
    for batch in taken:
        method.observe(batch)
    return n / (time.perf_counter() - started)


def measure(name: str, data_dir: str, rounds: int) -> list[str]:
    """A row of the table: medians of alternating rounds."""
    flags, n, original = CASES[name]
    method, batches = prepared(flags, data_dir)
    ours = [(method, batches, n)]
    inner = getattr(method, "inner", None)
    if inner and inner.kernel:
        eager, its_batches = prepared(flags, data_dir)
        eager.inner.kernel = None
        ours.append((eager, its_batches, max(1, n // 20)))
    for side in ours:
        rate(*side)
    figures = [[rate(*side) for side in ours] for _ in range(rounds)]
    fast = statistics.median(f[0] for f in figures)
    cells = [name, f"{fast:,.0f}"]
    if len(ours) == 1:
        return [*cells, "–", "–", original]
    slow, ratio = (statistics.median(v) for v in zip(*((f[1], f[0] / f[1]) for f in figures), strict=True))
    return [*cells, f"{slow:,.1f}", f"{ratio:.1f}", original]


@guarded
def main(argv: list[str] | None = None) -> None:
    """Measure, print, and put the table into a file."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "methods",
        nargs="*",
        choices=Names(CASES),
        metavar="METHOD",
        help=f"of {', '.join(CASES)} (default: all)",
    )
    parser.add_argument("--data_dir", default="~/.cache/engram", help="where MNIST lies")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds for each method")
    parser.add_argument("--update", type=Path, metavar="FILE", help="file whose marked part is replaced")
    args = parser.parse_args(argv)
    check_bounds(args, rounds=COUNT)
    check_update(args.update, MARKER)
    head = ["method", "examples/s", "eager", "ratio", "original, elsewhere"]
    rows = [head, ["---"] * len(head)]
    for name in args.methods or CASES:
        rows.append(measure(name, args.data_dir, args.rounds))
        print(" | ".join(rows[-1]), flush=True)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"{cpu_name()}, one thread, torch {versions()['torch']}; medians of {args.rounds} rounds."]
    if args.update:
        update(args.update, MARKER, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
