"""A run that has learned some tasks, opened with the network and the method as its checkpoint left them."""

import argparse
from dataclasses import dataclass, replace
from typing import Any

from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.method import Method
from engram.utils import checkpoint
from engram.utils import device as devices
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
from engram.utils.processes import threads_at_most
from engram.utils.runs.run_dir import RunDir
from engram.utils.training.trainer import Trainer


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder, its trainer in the state of the checkpoint, and the checkpoint's content."""

    run_dir: RunDir
    trainer: Trainer
    saved: dict[str, Any]

    @property
    def method(self) -> Method:
        """The method, with its network and all its state."""
        return self.trainer.method

    @property
    def name(self) -> str:
        """The name of the run's method."""
        return self.trainer.config.run.model

    @property
    def n_learned(self) -> int:
        """Number of tasks that it has learned."""
        return self.trainer.position.task


def add_num_threads(parser: argparse.ArgumentParser) -> None:
    """Give a program that opens runs the flag --num_threads, which `open_trained_run` reads."""
    parser.add_argument(
        "--num_threads", metavar="N", help="CPU threads; 0: 1 for a fully connected net, otherwise all "
        "cores or OMP_NUM_THREADS (default: as the run had, but no more than OMP_NUM_THREADS or the cores)",
    )  # fmt: skip


def open_trained_run(
    run: str, output_dir: str, device: str, num_threads: int | str | None = None
) -> TrainedRun:
    """The run in a folder, or of an id under `output_dir`; it must stand at the end of a task.

    num_threads: as main.py's flag; None takes the run's own, where this process may have as many.
    """
    run_dir = RunDir.find(run, output_dir)
    given = {} if num_threads is None else {"num_threads": num_threads}
    config = resolve([(str(run_dir.config), run_dir.load_config() | {"device": device} | given)])
    if not given:
        n_threads = min(config.run.num_threads, threads_at_most())
        config = replace(config, run=replace(config.run, num_threads=n_threads))
    path = run_dir.path / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{run_dir.path}: no checkpoint.pt; no task of this run has been learned")
    method = build_method(config, devices.choose(config.run.device), proxies.create)
    trainer = Trainer(config, method, run_dir.path, quiet=True)
    trainer.load()
    if trainer.position.epoch or trainer.position.step:
        next_stop = trainer.position.task + 1
        raise UserError(
            f"{run_dir.path}: stopped inside task {trainer.position.task}; let it be learned first: "
            f"{registry.command()} --resume {run_dir.path} --stop_after {next_stop}"
        )
    return TrainedRun(run_dir, trainer, checkpoint.read(path))
