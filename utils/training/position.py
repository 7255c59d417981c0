"""How far a run has come in its stream."""

from dataclasses import dataclass


@dataclass
class Position:
    """The next step to run: index in the stream, epoch, step in the epoch, steps done in the whole run."""

    task: int = 0
    epoch: int = 0
    step: int = 0
    total: int = 0

    @property
    def inside_task(self) -> bool:
        """Whether the task has begun: it is not its first step that is next."""
        return bool(self.epoch or self.step)
