"""One run of a built method in this process: claimed, resumed, trained, recorded, and ended as it ended."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Generic

from engram.utils import distributed
from engram.utils.config.config import Config
from engram.utils.errors import DiskError
from engram.utils.runs.recorder import Recorder
from engram.utils.runs.run_dir import RunDir
from engram.utils.tracking.background_tracker import BackgroundTracker
from engram.utils.training.distributed_trainer import FollowerTrainer
from engram.utils.training.ports import BatchT, Learner, TaskT
from engram.utils.training.progress import DivergedError
from engram.utils.training.signals import InterruptedRunError, StoppedRunError
from engram.utils.training.trainer import Trainer


class Session(Generic[TaskT, BatchT]):
    """Context manager around `train` and `report`; a run that is interrupted, diverges or fills the disk
    ends inside it.

    Of several processes (torchrun) the main one trains and records; the others take the same steps and
    write nothing. run_dir: an existing folder, or None for a new one. resumed: go on from its checkpoint.
    wait: if another process holds the folder, wait for it instead of refusing, and at the end for figures
    and MLflow. exit_code is valid afterwards.
    """

    def __init__(
        self,
        config: Config,
        method: Learner[TaskT, BatchT],
        run_dir: RunDir | None,
        resumed: bool = False,
        wait: bool = False,
        tracking: BackgroundTracker | None = None,
    ):
        self.config, self.method, self.run_dir = config, method, run_dir
        self.resumed, self.wait, self.tracking = resumed, wait, tracking
        self.recorder: Recorder[TaskT, BatchT] | None = None
        self.exit_code = 0
        self._stack = ExitStack()

    def __enter__(self) -> "Session[TaskT, BatchT]":
        with self._stack as stack:  # closes what is open already if a later step fails
            if distributed.is_main_process():
                self.run_dir = self.run_dir or RunDir.create(self.config.flat())
                stack.enter_context(self.run_dir.claimed(self.wait))
                # its clock starts after the wait
                self.trainer = Trainer(self.config, self.method, self.run_dir.path)
                self._prepare()
                if self.resumed:
                    self.run_dir.check_results()
                self.recorder = Recorder(
                    self.config, self.run_dir, self.trainer, self.resumed, self.tracking, self.wait
                )
                stack.enter_context(self.recorder)
                self.trainer.on_task = self.recorder.after_task
                self.trainer.results.on_point = self.recorder.after_point
            else:
                path = self.run_dir.path if self.run_dir else Path()  # it writes nothing there
                self.trainer = FollowerTrainer(self.config, self.method, path, quiet=True)
                self._prepare()
            self._stack = stack.pop_all()
        return self

    def _prepare(self) -> None:
        """Load the checkpoint in every process before any of them goes on."""
        if self.resumed:
            self.trainer.load()
        distributed.barrier()
        self.trainer.results.add_data_seconds(self.method.setup.benchmark.build_seconds)

    def train(self) -> None:
        """Take the method through what is left of the stream."""
        self.trainer.run()

    def report(self) -> None:
        """Write and print everything that a finished run leaves."""
        if self.recorder:
            self.recorder.finished()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        expected = self._end(error)
        if expected:
            kind = error = traceback = None
        self._stack.__exit__(kind, error, traceback)
        return expected

    def _end(self, error: BaseException | None) -> bool:
        """Whether the run ended in a way that it reports itself; sets the exit code."""
        if self.recorder is None:
            return isinstance(error, StoppedRunError)
        if isinstance(error, InterruptedRunError):
            self.recorder.interrupted(error)
            self.exit_code = error.code
        elif isinstance(error, DivergedError):
            self.recorder.failed(str(error))
            self.exit_code = 1
        elif isinstance(error, DiskError):
            self.recorder.not_written(error)
            self.exit_code = 1
        else:
            return False
        return True
