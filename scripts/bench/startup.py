"""Where a run's time goes that is not training: from the command to the first step, and beside the steps.

Parts of `python -m scripts.bench`: `startup` starts main.py as a user does, on real digits, and splits the
time to its first step; `overhead` takes a short run of ResNet-18 on random CIFAR-sized images with
everything on (checkpoints, progress, figures, MLflow) and tells what it costs beside training.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

from engram import main as program
from engram.backbones.backbone import build_network
from engram.datasets.streams import class_incremental
from engram.models import build as building
from engram.models.er import ER
from engram.models.method import Method, Setup
from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.timing import Figure, random_source
from engram.utils.config.config import Config, resolve
from engram.utils.runs.run_record import RunRecord
from engram.utils.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("python, torch", "flags, plugins", "data, network", "folder, logging", "first step")
# Runs main.py with its stages timed; prints seconds since argv[1] at each mark and ends.
CHILD = """
import os, sys, time
started, marks = float(sys.argv[1]), []
mark = lambda: marks.append(time.time() - started)
import torch
mark()
from engram import main
from engram.models import build as building
from engram.utils.config import cli
request = cli.parse(sys.argv[2:])
mark()
from engram.utils.runs.run_record import RunRecord
from engram.utils.training.trainer import Trainer
build = building.build_method
def timed_build(*args):
    method = build(*args)
    mark()
    return method
building.build_method = timed_build
run = Trainer.run
def timed_run(self):
    mark()
    return run(self)
Trainer.run = timed_run
def stop(self, *args):
    mark()
    print(*marks, file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)
Trainer._between_steps = stop
main.main(sys.argv[2:])
"""


def startup() -> list[Figure]:
    """Seconds from the command to the first step, split; the last of three starts."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--model", "er", "--dataset", "seq-digits", "--output_dir", folder]
        flags += ["--tracking_uri", f"sqlite:///{folder}/mlflow.db"]
        figures = []
        for logging, extra in (("without MLflow", ["--disable_log"]), ("with MLflow", [])):
            for _ in range(3):
                parts = stages([*flags, *extra])
            listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
            name, total = f"start to first step, {logging}", sum(parts.values())
            figures.append(Figure(name, f"{name}: {total:.2f} s  ({listed})", parts | {"seconds": total}))
    return figures


def stages(flags: list[str]) -> dict[str, float]:
    """Seconds of each stage of a start of main.py."""
    command = [sys.executable, "-c", CHILD, str(time.time()), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    marks = [0.0, *map(float, done.stderr.splitlines()[-1].split())]
    return {name: b - a for name, a, b in zip(MARKS, marks, marks[1:], strict=False)}


def overhead() -> list[Figure]:
    """Seconds of logging, figures and checkpoints, and from what length of a run on they are under 2 %."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {"model": "er", "dataset": "seq-cifar10", "device": "cpu", "output_dir": folder}
        config = resolve(
            [
                (
                    "bench",
                    flags
                    | {"n_epochs": 1, "tracking_uri": f"sqlite:///{folder}/mlflow.db", "wait_for_log": True},
                )
            ]
        )
        spent, saves = measured_run(config)
    beside, n_tasks, every = spent["total"] - spent["train"] - spent["eval"], 5, config.log.checkpoint_every
    save = statistics.median(saves)
    share = save / (60 * every)  # of training, by checkpoints inside tasks
    enough = (beside + n_tasks * save) / (0.02 - share)
    text = (
        f"logging, figures, checkpoints: {beside:.1f} s in a run of {n_tasks} tasks; a checkpoint of "
        f"ResNet-18 {save:.2f} s, after every task and every {every:g} min ({100 * share:.2f} %); together "
        f"under 2 % of runs longer than {enough / 60:.1f} min"
    )
    numbers = {"beside_s": beside, "checkpoint_s": save, "under_2_percent_from_s": enough}
    return [Figure("logging, figures, checkpoints", text, numbers)]


def measured_run(config: Config) -> tuple[dict[str, float], list[float]]:
    """A short run on random images, MLflow included: its seconds by purpose, and those of its checkpoints."""
    source, saves = random_source(5 * 64, 100, (3, 32, 32)), []

    def build(config: Config, device: object, create_proxy: object) -> Method:
        benchmark = class_incremental("bench", source, CIFAR, config, device)
        net = build_network(config.run.backbone, config.architecture, benchmark, seed=0)
        return ER(net, config.method, Setup(benchmark, config.train, 0))

    def save(trainer: Trainer) -> None:
        started = time.perf_counter()
        own_save(trainer)
        saves.append(time.perf_counter() - started)

    own_build, own_save = building.build_method, Trainer.save
    building.build_method, Trainer.save = build, save
    started = time.perf_counter()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            _, folder = program.run(config)
    finally:
        building.build_method, Trainer.save = own_build, own_save
    seconds = asdict(RunRecord.read(folder.path).seconds)
    return seconds | {"total": time.perf_counter() - started - sum(saves)}, saves
