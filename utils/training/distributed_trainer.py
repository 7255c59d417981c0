"""Follower: what every process of a run but the first does: the same steps, and nothing else."""

import signal
import time
from types import FrameType

from engram.utils.training.signals import Interrupt
from engram.utils.training.trainer import Trainer

# How long a process waits for the first one to save the run after a signal; torchrun kills after 30.
PATIENCE_SECONDS = 20


class Patience(Interrupt):
    """On a signal, go on: the first process needs this one for its last step. It saves and ends the run."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.alarm(PATIENCE_SECONDS)


class FollowerTrainer(Trainer):
    """Takes the first process's steps with it; writes nothing, shows nothing, stops for nothing."""

    interrupts = Patience

    def save(self) -> None:
        """The first process does; it is as long until the next time."""
        self._saved_at = time.monotonic()

    def _show(self, place: str) -> None:
        """The first process ends the run when the losses diverge; this one is quiet."""
        self.progress.show(place, self.losses.read(), 0)  # which is then not due for a while
