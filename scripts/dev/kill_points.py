"""Where a run can be killed: a forked process runs main.py and sends itself SIGKILL at a named event.

The production code is as it is; the process wraps a few of its functions, counts what passes and dies at
the event that was drawn. Whoever forks must have set torch to one thread: thread pools do not survive a fork.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram import main as program
from engram.utils import checkpoint, files
from engram.utils.runs import figures
from engram.utils.training.trainer import Trainer

FILES = ("checkpoint", "results")
RUN_POINTS = ("step", "end_task", *FILES)
MLFLOW_POINTS = {
    "mlflow_start": ("create_run", "update_run"),
    "mlflow_log": ("log_batch", "log_artifact"),
    "mlflow_end": ("set_terminated",),
}
# How far the event has come when the process dies.
FILE_STAGES = ("half written", "not renamed", "renamed")
CALL_STAGES = ("before", "after")
LIMIT = 300  # seconds until a process that hangs is ended


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the `number`-th event of a point, counted from 1."""

    point: str
    number: int
    stage: str
    share: float = 0.5  # of the file's bytes that are on the disk, where it is half written

    def __str__(self) -> str:
        written = f" ({self.share:.0%})" if self.stage == "half written" else ""
        return f"{self.point} {self.number}, {self.stage}{written}"


class Saboteur:
    """Wraps functions of this process: counts the events of every point and dies at one of them.

    every: a checkpoint is due after so many steps, whatever the clock says. An undisturbed run (kill is
    None) only counts those and saves at the ends of tasks, so that saving itself is judged too.
    """

    def __init__(self, kill: Kill | None, every: int):
        self.kill, self.every = kill, every
        self.counts: Counter[str] = Counter()

    def dies_at(self, point: str) -> bool:
        """Count one event of this point; whether it is the one."""
        self.counts[point] += 1
        return self.kill is not None and (self.kill.point, self.kill.number) == (point, self.counts[point])

    def install(self) -> None:
        """Wrap what the points stand for. Figures are left out: they take longer than the run."""
        figures.write_all = lambda record, folder: []
        Trainer._between_steps = self._around_steps(Trainer._between_steps)
        Trainer.run = self._around_run(Trainer.run)
        for module in (checkpoint, files):
            module.put_in_place = self._around_rename(files.put_in_place)
        if "mlflow" in sys.modules:
            self._wrap_mlflow()

    def _around_steps(self, original: Callable[..., None]) -> Callable[..., None]:
        def between_steps(trainer: Trainer, *arguments: Any) -> None:
            if self.dies_at("step"):
                die()
            if trainer.position.total % self.every == 0:
                if self.kill:
                    trainer._saved_at = float("-inf")
                else:
                    self.counts["checkpoint"] += 1
            original(trainer, *arguments)

        return between_steps

    def _around_run(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(trainer: Trainer) -> Any:
            cls = type(trainer.method)  # on the class: what an instance holds is saved
            cls.end_task = self._around_call("end_task", cls.end_task)
            return original(trainer)

        return run

    def _around_call(self, point: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            dying = self.dies_at(point)
            if dying and self.kill.stage == "before":
                die()
            answer = original(*arguments, **keywords)
            if dying:
                die()
            return answer

        return call

    def _around_rename(self, original: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        """Around the end of every atomic write: the temporary file is whole and takes the place of `path`."""

        def put_in_place(temporary: Path, path: Path) -> None:
            if path.name == "config.yaml":  # without it there is no run that could be resumed
                original(temporary, path)
                return
            dying = self.dies_at("checkpoint" if path.name == "checkpoint.pt" else "results")
            if dying and self.kill.stage == "half written":
                os.truncate(temporary, int(self.kill.share * temporary.stat().st_size))
            if dying and self.kill.stage != "renamed":
                die()
            original(temporary, path)
            if dying:
                die()

        return put_in_place

    def _wrap_mlflow(self) -> None:
        from mlflow.tracking import MlflowClient

        for point, names in MLFLOW_POINTS.items():
            for name in names:
                setattr(MlflowClient, name, self._around_call(point, getattr(MlflowClient, name)))


def die() -> None:
    """End this process as the system does when memory runs out: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_in_child(flags: list[str], log: Path, saboteur: Saboteur) -> tuple[int, dict[str, int]]:
    """Run main.py in a forked process; returns its exit code (-9 when killed) and the events counted.

    log: gets what it prints. The events are known of a run that was not killed.
    """
    counted = log.with_suffix(".json")
    counted.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(LIMIT)
            with open(log, "w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            saboteur.install()
            code = program.main(flags)
            counted.write_text(json.dumps(saboteur.counts))
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(counted.read_text()) if counted.exists() else {}
