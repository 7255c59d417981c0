"""Write a benchmark as a `.pt` file of the GEM and MER codes, so that they can be run on the same data.

    python scripts/interop/write_gem_file.py mnist-rotations rotations.pt --seed 1
    python scripts/interop/write_gem_file.py mnist-permutations all.pt --samples_per_task 0 --n_tasks 5

The file is `[d_tr, d_te]`, lists over tasks of `[meta, X, y]`: X (N, pixels) float32 in [0, 1], y (N,) int64,
meta the angle or permutation of the task (else its number). Such a file takes 4 bytes a pixel: 10,000 test
digits of one task are 31 MB. `--dataset gem-file --gem_file OUT` reads it back, image by image the same.
"""

import argparse
import sys
from pathlib import Path

import torch

from engram.datasets import gem_file
from engram.datasets.benchmark import Benchmark
from engram.utils import files
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_file
from engram.utils.door import guarded
from engram.utils.errors import UserError


def content(benchmark: Benchmark) -> list[list]:
    """`[d_tr, d_te]` of a benchmark."""
    drawn = next(iter(benchmark.transforms.values()), range(len(benchmark.tasks)))
    splits = [[], []]
    for task, meta in zip(benchmark.tasks, drawn, strict=True):
        for split, samples in zip(splits, (benchmark.train(task), benchmark.test_of(task)), strict=True):
            split.append([meta, samples.x_raw.flatten(1).float().div_(255), samples.y.clone()])
    return splits


def is_gem_file(path: Path) -> bool:
    """Whether the file holds training and test tasks, as those that are written here."""
    stored = gem_file.read(path)
    return isinstance(stored, list) and len(stored) == 2 and all(isinstance(split, list) for split in stored)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Write the file that the command line asks for; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", help="name of a benchmark, e.g. mnist-rotations")
    parser.add_argument("out", type=Path, help="the file to write")
    for flag, text in (
        ("--seed", "of angles, permutations and subsets (default: 0)"),
        ("--n_tasks", "number of tasks (default: the benchmark's)"),
        ("--samples_per_task", "training samples of each task, 0: all (default: the benchmark's)"),
        ("--data_dir", "where data sets lie or are downloaded to"),
    ):
        parser.add_argument(flag, default=argparse.SUPPRESS, help=text)
    flags = vars(parser.parse_args(argv))
    name, out = flags.pop("benchmark"), flags.pop("out")
    check_file(out, "", (out.suffix,), is_gem_file)
    config = resolve([("command line", {"model": "sgd", "dataset": name, **flags})])
    benchmark = registry.load("datasets", name).build(config, torch.device("cpu"))
    try:
        with files.replacing(out) as temporary:
            torch.save(content(benchmark), temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{out}: cannot be written: {error}") from None
    print(f"{out}: {len(benchmark.tasks)} tasks, {out.stat().st_size / 1e6:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
