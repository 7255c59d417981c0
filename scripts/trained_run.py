"""A run that has learned some tasks, opened with the network and the method as its checkpoint left them."""

from dataclasses import dataclass
from typing import Any

from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.method import Method
from engram.utils import checkpoint
from engram.utils import device as devices
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
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


def open_trained_run(run: str, output_dir: str, device: str) -> TrainedRun:
    """The run in a folder, or of an id under `output_dir`; it must stand at the end of a task."""
    run_dir = RunDir.find(run, output_dir)
    config = resolve([(str(run_dir.config), run_dir.load_config() | {"device": device})])
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
