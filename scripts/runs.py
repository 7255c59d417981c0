"""Runs: open what a run has left, as the scripts that read runs do."""

from dataclasses import dataclass
from typing import Any

from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.method import Method
from engram.utils import checkpoint
from engram.utils import device as devices
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.training.trainer import Trainer

# The flags that weigh what a method does against forgetting, and high values from which tuning starts: for
# EWC, MAS, SI, LwF and EBLL those of the code of De Lange et al. 2021 (arXiv 1909.08383). IMM is exported
# with its flag, not tuned.
STRENGTH = {
    "ebll": {"lwf_lambda": 10.0, "ebll_alpha": 1.0},
    "ewc": {"e_lambda": 400.0},
    "imm_mean": {"imm_lambda": 1.0},
    "imm_mode": {"imm_lambda": 1.0},
    "lwf": {"lwf_lambda": 10.0},
    "mas": {"mas_lambda": 3.0},
    "rwalk": {"rwalk_lambda": 400.0},
    "si": {"si_c": 400.0},
}


@dataclass(frozen=True)
class Run:
    """A run's folder and trainer, as its checkpoint left them."""

    folder: RunDir
    trainer: Trainer
    saved: dict[str, Any]

    @property
    def method(self) -> Method:
        """The method with all its state."""
        return self.trainer.method

    @property
    def name(self) -> str:
        """The method's."""
        return self.trainer.config.run.model

    @property
    def n_learned(self) -> int:
        """Tasks learned so far."""
        return self.trainer.position.task


def open_run(run: str, output_dir: str, device: str) -> Run:
    """The run in a folder, or of an id under `output_dir`; it must stand at the end of a task."""
    folder = RunDir.find(run, output_dir)
    config = resolve([(str(folder.config), folder.load_config() | {"device": device})])
    path = folder.path / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{folder.path}: no checkpoint.pt; no task of this run has been learned")
    method = build_method(config, devices.choose(config.run.device), proxies.create)
    trainer = Trainer(config, method, folder.path, quiet=True)
    trainer.load()
    if trainer.position.epoch or trainer.position.step:
        next_stop = trainer.position.task + 1
        raise UserError(
            f"{folder.path}: stopped inside task {trainer.position.task}; let it be learned first: "
            f"python main.py --resume {folder.path} --stop_after {next_stop}"
        )
    return Run(folder, trainer, checkpoint.read(path))
