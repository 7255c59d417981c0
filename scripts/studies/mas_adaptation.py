"""Is a network's use better protected by importance from the images it is used on than from training data?

    python scripts/studies/mas_adaptation.py [--data_dir DIR] [--seeds 0,1,2,3,4] [--angle 45]

MAS learns three rotations of MNIST (`mnist-rotations`, 5 tasks of 1,000 digits, one head; angles below 108
degrees) and is then used on test images turned by --angle, which need not be one of them. Two copies of the
run learn the last two rotations: one with the importance of the training images, one with that of 1,000 of
those turned test images, unlabeled (interop/adapt_importance.py). Measured on another 5,000 turned test
images: accuracy before and after those two tasks. Forgetting is the difference, in points; what the copies
differ by is paired by seed. `later` is the accuracy on the last two tasks right after each; Ω is the sum of
all importances before them, by which one sees whether a copy was merely held faster.
About half a minute a seed on an idle core; runs lie in --output_dir, finished ones are used again.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engram import main as program
from engram.datasets import sources
from engram.datasets.rotation import turned
from engram.scripts.analysis.table import mean_std
from engram.scripts.interop import adapt_importance
from engram.scripts.studies.program import add_seeds, run_study, seeds_of, study_parser
from engram.scripts.trained_run import TrainedRun, open_trained_run
from engram.utils import checkpoint
from engram.utils.door import guarded
from engram.utils.errors import UserError

FLAGS = [
    "--model", "mas", "--mas_lambda", "0.1", "--mas_n", "1000", "--dataset", "mnist-rotations",
    "--n_tasks", "5", "--batch_size", "10", "--n_epochs", "3", "--lr", "0.05", "--disable_log",
    "--ignore_other_metrics",
]  # fmt: skip
N_LEARNED, N_IMAGES = 3, 1000
COPIES = ("training", "adapted")


def turned_digits(data_dir: str, angle: float) -> tuple[Tensor, Tensor]:
    """(N, 1, 28, 28) uint8 test images turned by `angle`, and their labels."""
    source = sources.mnist(data_dir)
    degrees = torch.full((len(source.test_x),), angle, dtype=torch.float64)
    return turned(source.test_x, degrees), source.test_y


def write_images(images: Tensor, folder: Path) -> None:
    """PNG files, as a user would have them."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images[:, 0].numpy()):
        Image.fromarray(image).save(folder / f"{i:05}.png")


@torch.no_grad()
def accuracy(run: TrainedRun, images: Tensor, y: Tensor) -> float:
    """Share of the images that the run's network gets right."""
    method = run.method
    method.net.eval()
    x = run.trainer.benchmark.augment.normalise(images)
    return (method.predict(x, torch.zeros_like(y)).argmax(1) == y).double().mean().item()


def call(step, *arguments: str) -> None:
    """One of our programs, quietly."""
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            code = step(list(arguments))
    if code:
        raise UserError(f"{' '.join(arguments)}: ended with exit code {code}; run it to see why")


def prepare(folder: Path, seed: int, data_dir: str, images: Path) -> None:
    """The run of three tasks and its two copies, each of which then learns the rest."""
    call(
        program.main, *FLAGS, "--seed", str(seed), "--data_dir", data_dir, "--device", "cpu", "--stop_after",
        str(N_LEARNED), "--output_dir", str(folder / "runs"),
    )  # fmt: skip
    (base,) = folder.glob("runs/*/*/*")
    shutil.copytree(base, folder / "base")
    shutil.copytree(base, folder / "training")
    call(adapt_importance.main, str(base), str(images), "--out", str(folder / "adapted"), "--device", "cpu")
    for copy in COPIES:
        shutil.copy(folder / copy / "checkpoint.pt", folder / f"{copy}_start.pt")
        call(program.main, "--resume", str(folder / copy))


def measure(folder: Path, images: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy before and after, accuracy on later tasks and total importance of each copy."""
    before, measured = accuracy(open_trained_run(str(folder / "base"), "", "cpu"), images, y), {}
    for copy in COPIES:
        run = open_trained_run(str(folder / copy), "", "cpu")
        R = run.trainer.results.R["task_il"]
        start = checkpoint.read(folder / f"{copy}_start.pt")["method"]["quadratic"]["importance"]
        measured[copy] = {
            "before": before,
            "after": accuracy(run, images, y),
            "later": float(np.diag(R)[N_LEARNED:].mean()),
            "omega": float(sum(omega.sum() for omega in start.values())),
        }
    return measured


def table(by_seed: dict[int, dict]) -> str:
    """Mean ± standard deviation over seeds, and the paired differences."""
    cell = partial(mean_std, scale=1)
    rows = {
        copy: {
            "before": [100 * f[copy]["before"] for f in by_seed.values()],
            "after": [100 * f[copy]["after"] for f in by_seed.values()],
            "forgotten": [100 * (f[copy]["before"] - f[copy]["after"]) for f in by_seed.values()],
            "later": [100 * f[copy]["later"] for f in by_seed.values()],
        }
        for copy in COPIES
    }
    lines = [
        "| importance from | before | after | forgetting | later | Ω |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for copy, columns in rows.items():
        omega = cell([f[copy]["omega"] for f in by_seed.values()], digits=0)
        lines.append(f"| {copy} images | " + " | ".join([*map(cell, columns.values()), omega]) + " |")
    saved = np.subtract(rows["training"]["forgotten"], rows["adapted"]["forgotten"])
    less = f"adapted importance forgets {cell(saved)} points less, paired by seed"
    return "\n".join([*lines, "", f"{less}; in {int((saved > 0).sum())} of {len(saved)} seeds less."])


def study(args: argparse.Namespace) -> str:
    """Run what is missing; returns the table."""
    by_seed, seeds = {}, seeds_of(args)
    images, y = turned_digits(args.data_dir, args.angle)
    for seed in seeds:
        folder = args.output_dir / f"angle{args.angle:g}-seed{seed}"
        if not (folder / "found.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_images(images[::2][:N_IMAGES], folder / "images")
            prepare(folder, seed, args.data_dir, folder / "images")
            (folder / "found.json").write_text(json.dumps(measure(folder, images[1::2], y[1::2])))
        by_seed[seed] = json.loads((folder / "found.json").read_text())
    return table(by_seed)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    parser = study_parser(__doc__, "runs/mas-adaptation")
    add_seeds(parser)
    parser.add_argument("--angle", type=float, default=45.0, help="of the images in use, in degrees")
    args = parser.parse_args(argv)
    if not math.isfinite(args.angle):
        raise UserError(f"--angle {args.angle:g}: must be a finite number")
    return run_study(study, "mas adaptation", args)


if __name__ == "__main__":
    sys.exit(main())
