"""Early stopping: a task ends when what its validation samples measure has stopped getting better."""

from collections.abc import Sequence

from engram.utils.config.config import TrainOptions
from engram.utils.errors import UserError
from engram.utils.training.evaluation import accuracies, mean_loss
from engram.utils.training.ports import BatchT, Learner, TaskT


class EarlyStopping:
    """Counts the epochs without a better accuracy, or a smaller loss, on a task's validation samples.

    `--validation` is what the benchmark's test set then holds: test data is never looked at.
    """

    def __init__(self, options: TrainOptions):
        self.patience, self.metric = options.early_stopping_patience, options.early_stopping_metric
        self.begin()

    def begin(self) -> None:
        """Forget what the last task's epochs were measured at."""
        self.best, self.n_worse = -float("inf"), 0

    def ends(self, method: Learner[TaskT, BatchT], task: TaskT) -> bool:
        """Whether the task ends after this epoch; it is measured on the tasks whose data it presents."""
        tasks = method.setup.benchmark.tasks
        if not all(len(tasks[part].test_index) for part in task.parts):
            raise UserError(f"--early_stopping_patience: task {task.id} has no validation data")
        score = self._score(method, task.id + 1, task.parts)
        self.n_worse = 0 if score > self.best else self.n_worse + 1
        self.best = max(self.best, score)
        return self.n_worse >= self.patience

    def _score(self, method: Learner[TaskT, BatchT], n_tasks: int, parts: Sequence[int]) -> float:
        """The larger the better: the accuracy among the task's classes, or minus the loss among them."""
        if self.metric == "loss":
            return -mean_loss(method, parts)
        return accuracies(method, n_tasks, n_tasks)[list(parts), 1].mean().item()

    def state_dict(self) -> list[float]:
        """The best score and the epochs since, for a checkpoint."""
        return [self.best, self.n_worse]

    def load_state_dict(self, state: list[float]) -> None:
        """Continue with the score and the epochs that `state_dict` returned."""
        best, n_worse = state
        self.best, self.n_worse = best, int(n_worse)
