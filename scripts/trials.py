"""Trials: runs of main.py by which scripts/tune.py chooses, and the accuracies that it reads from them."""

import contextlib
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from engram import main as program
from engram.utils import files
from engram.utils.config import config as settings
from engram.utils.config.config import Config
from engram.utils.errors import UserError
from engram.utils.runs.run_record import FILE_NAME, RunRecord

DIVERGED = 1  # what main.py returns then, and only then


class Trials:
    """Runs of main.py in this process, each in a folder of its own below OUTPUT_DIR/tune."""

    def __init__(self, config: Config, seeds: tuple[int, ...], first_tasks: int, measured: str):
        self.config, self.seeds, self.first_tasks, self.measured = config, seeds, first_tasks, measured
        self.validation = config.stream.validation or 10.0
        self.method_flags = flags_of_method(config)
        self.folder = Path(config.run.output_dir).expanduser() / "tune"

    def measure(self, model: str, flags: dict[str, float]) -> float | None:
        """Mean over seeds of what is `measured`, on validation data; None where a run diverges."""
        accuracies = [self.run(self.flags(model, flags, seed)) for seed in self.seeds]
        mean = None if None in accuracies else float(np.mean(accuracies))
        shown = "diverged" if mean is None else f"{self.measured} {100 * mean:.2f} %"
        print(f"{model} {', '.join(f'{k} {v:g}' for k, v in flags.items())}: {shown}", flush=True)
        return mean

    def flags(self, model: str, tuned: dict[str, float], seed: int) -> dict[str, Any]:
        """All flags of one run of `model`, in which the flags to be tuned are `tuned`."""
        flags = self.config.flat()
        if model != flags["model"]:
            flags = {name: value for name, value in flags.items() if name not in self.method_flags}
        flags |= {"validation": self.validation, "stop_after": self.first_tasks, "disable_log": True}
        return flags | {"ignore_other_metrics": True, "model": model, "seed": seed} | tuned

    def run(self, flags: dict[str, Any]) -> float | None:
        """The accuracy of one run, started or resumed unless it is finished; None if it diverges."""
        text = yaml.safe_dump(
            {k: v for k, v in flags.items() if k not in settings.OPERATIONAL - {"stop_after"}}
        )
        folder = self.folder / f"{flags['model']}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
        folder.mkdir(parents=True, exist_ok=True)
        record = record_in(folder)
        # `failed` is a full disk as well as a divergence, and that repeats itself from its checkpoint
        if record is None or record.status not in ("finished", "stopped"):
            if self.execute(flags | {"output_dir": str(folder)}, folder) == DIVERGED:
                return None
            record = record_in(folder)
        assert record is not None and record.evaluated_on == "validation"
        return ACCURACIES[self.measured](record, self.first_tasks or record.n_tasks)

    def execute(self, flags: dict[str, Any], folder: Path) -> int:
        """Call main.py, its output in log.txt; returns 0 or `DIVERGED`, ends the program with others."""
        begun = sorted(folder.glob("*/*/*/config.yaml"))
        file = folder / "flags.yaml"
        files.write_text(yaml.safe_dump(flags), file)
        arguments = ["--resume", str(begun[-1].parent)] if begun else ["--config", str(file)]
        log = folder / "log.txt"
        with open(log, "a", encoding="utf-8") as out:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = program.main(arguments)
        if code == 2:
            raise UserError(log.read_text(encoding="utf-8").splitlines()[-1].removeprefix("error: "))
        if code not in (0, DIVERGED):
            sys.exit(code)
        return code


def record_in(folder: Path) -> RunRecord | None:
    """The record of the run in a trial's folder, None before there is one."""
    paths = sorted(folder.glob(f"*/*/*/{FILE_NAME}"))
    return RunRecord.read(paths[-1]) if paths else None


def learning_accuracy(record: RunRecord, n_tasks: int) -> float:
    """Mean over the first tasks of the accuracy on each when it had just been learned."""
    return _mean(_matrix(record).diagonal()[:n_tasks])


def average_accuracy(record: RunRecord, n_tasks: int) -> float:
    """Mean over the first tasks of the accuracy on each after the last of them."""
    return _mean(_matrix(record)[n_tasks - 1, :n_tasks])


ACCURACIES = {"learning accuracy": learning_accuracy, "average accuracy": average_accuracy}


def _matrix(record: RunRecord) -> NDArray[np.float64]:
    """R of the scenario's view."""
    return (record.class_il if record.scenario == "class-il" else record.task_il).R


def _mean(accuracies: NDArray[np.float64]) -> float:
    """Their mean; every task must have one."""
    if np.isnan(accuracies).any():
        task = int(np.isnan(accuracies).argmax())
        raise UserError(f"task {task} has no accuracy: no validation data of it; give a larger --validation")
    return float(accuracies.mean())


def flags_of_method(config: Config) -> set[str]:
    """Names of the flags that the method itself has."""
    return {field.name for field in dataclasses.fields(config.method)}
