"""Follower: what every process of a run but the first does: the same steps, and nothing else."""

import signal
from types import FrameType

from utils.interrupt import Interrupt
from utils.training import Trainer

# How long a process waits for the first one to save the run after a signal; torchrun kills after 30.
PATIENCE_SECONDS = 20


class Patience(Interrupt):
    """On a signal, go on: the first process needs this one for its last step. It saves and ends the run."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.alarm(PATIENCE_SECONDS)


class Follower(Trainer):
    """Takes the first process's steps with it; writes nothing, shows nothing, stops for nothing."""

    interrupts = Patience

    def save(self) -> None:
        """The first process does."""

    def _show(self, place: str) -> None:
        """The first process shows the losses, and ends the run when they diverge."""
        self.losses.read()
