"""The trainer of every process of a run but the main one: the same steps, and nothing else."""

import signal
import time
from types import FrameType

from engram.utils.training.ports import BatchT, TaskT
from engram.utils.training.signals import SignalHandler
from engram.utils.training.trainer import Trainer

# How long a process waits for the main one to save the run after a signal; torchrun kills after 30.
GRACE_SECONDS = 20


class DelayedExit(SignalHandler):
    """On a signal, go on: the main process needs this one for its last step. It saves and ends the run."""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.alarm(GRACE_SECONDS)


class FollowerTrainer(Trainer[TaskT, BatchT]):
    """Takes the main process's steps with it; writes nothing, shows nothing, stops for nothing."""

    def handle_signals(self) -> DelayedExit:
        """Wait for the main process to save and end the run."""
        return DelayedExit()

    def save(self) -> None:
        """Note the time alone: the main process writes the checkpoint."""
        self._saved_at = time.monotonic()

    def _show(self, label: str) -> None:
        """Read the losses only: the main process ends the run when they diverge."""
        self.progress.show(label, self.losses.read(), 0)  # which is then not due for a while
