"""How many passes over its data, and how many steps in each, a run makes in every task."""

from collections.abc import Sequence
from typing import Generic

from engram.utils.config.config import Config
from engram.utils.training.ports import BatchT, Learner, TaskT

DEBUG_STEPS = 5  # of a pass, at most, with --debug_mode


class StepPlan(Generic[TaskT, BatchT]):
    """What `--n_epochs`, `--n_iters`, `--batch_size` and `--debug_mode` mean for the tasks of a stream."""

    def __init__(self, config: Config, method: Learner[TaskT, BatchT]):
        self.config, self.method = config, method
        self.benchmark = method.setup.benchmark

    def n_epochs(self, task: TaskT) -> int:
        """Passes over the task's data, the last one cut short by --n_iters; 0 for a task without steps."""
        train = self.config.train
        if not self.method.takes_steps_in(task):
            return 0
        if not train.n_iters:
            return train.n_epochs
        return -(-train.n_iters // self.benchmark.n_steps(task, train.batch_size))

    def n_steps(self, task: TaskT, epoch: int) -> int:
        """Steps of one pass over the task's data."""
        train = self.config.train
        n_steps = self.benchmark.n_steps(task, train.batch_size)
        if train.n_iters:
            n_steps = min(n_steps, train.n_iters - epoch * n_steps)
        return min(n_steps, DEBUG_STEPS) if self.config.run.debug_mode else n_steps

    def count_steps(self, tasks: Sequence[TaskT]) -> int:
        """Steps of a whole run on these tasks, of which it learns those from `--start_from` on.

        A task with n passes has (n − 1) · (steps of its first pass) + (steps of its last): --n_iters cuts the
        last one short and no other. Nothing is summed over passes, of which there may be 10⁹.
        """
        if self.config.log.inference_only:
            return 0
        return sum(self._n_steps_in(task) for task in tasks[self.config.log.start_from :])

    def _n_steps_in(self, task: TaskT) -> int:
        """Steps of all passes over the task's data."""
        n_epochs = self.n_epochs(task)
        if not n_epochs:
            return 0
        last = n_epochs - 1
        return last * self.n_steps(task, 0) + self.n_steps(task, last)
