"""Stream: networks that follow a stream of tasks, each leaving out its own half of every task.

What in-stream memorization is measured from: the networks that saw an example of task t in its task
and those that did not are compared after task t and after every later one. Class-incremental tasks, a
new optimizer for each, and replay from a reservoir of the network's own examples if wanted (ER).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engram.datasets.augment import Windows
from engram.memorization.study_data import StudyData
from engram.memorization.train_stream import StreamConfig
from engram.memorization.training import (
    StackedTraining,
    check_finite,
    epoch_order,
    learning_rate,
    refuse_last_batch_of_one,
    sgd,
    stacked_windows,
    train_step,
    windows_at,
)
from engram.utils import seeding

TaskClasses = list[tuple[int, ...]]  # the classes of each task, by their original labels
TaskRows = list[Tensor]  # for each task: (K, n) rows of the data that the networks see in it
CHUNK = 250  # images per forward pass of a stack


class Reservoirs:
    """A reservoir for each of K networks, (K, size) rows of the data; all have seen as many examples.

    The draws are arguments, so that a network's memory depends on its own random stream alone. `slots` is
    (K, size + 1): what is not stored is written to the last one.
    """

    def __init__(self, n_networks: int, size: int, device: torch.device):
        self.size, self.n_seen = size, 0
        self.slots = torch.zeros(n_networks, size + 1, dtype=torch.long, device=device)

    def __len__(self) -> int:
        return min(self.n_seen, self.size)

    def add(self, rows: Tensor, draws: Tensor) -> None:
        """Offer rows (K, n) one after the other; draws (K, n) in [0, 1): Vitter's algorithm R."""
        position = torch.arange(self.n_seen, self.n_seen + rows.shape[1], device=rows.device)
        drawn = (draws * (position + 1)).long()
        slots = torch.where(position < self.size, position, drawn).clamp_max(self.size)
        same = slots.unsqueeze(2) == slots.unsqueeze(1)
        replaced = same.triu(1).any(2)  # a later row of the batch takes the same slot
        self.slots.scatter_(1, slots.masked_fill(replaced, self.size), rows)
        self.n_seen += rows.shape[1]

    def sample(self, draws: Tensor) -> Tensor:
        """(K, m) stored rows, drawn with replacement by draws (K, m) in [0, 1)."""
        return self.slots.gather(1, (draws * len(self)).long())


class EpochPlan(NamedTuple):
    """The random choices of one epoch: all of them are drawn before it."""

    rows: Tensor  # (K, n) rows of the data, in the order of the epoch
    windows: Windows | None  # (K, n + replayed) augmentations
    entering: Tensor | None  # (K, n) draws for what enters the reservoirs, in a task's first epoch
    replayed: Tensor | None  # (K, steps · m) draws for what is replayed


class StreamTraining(StackedTraining):
    """Networks on their way through the stream of tasks.

    `outputs[name]`: (T, K, N) at the time after each task, NaN for examples of later tasks. loss: among
    the classes met so far; task_loss: among those of the example's own task; correct: among those met.
    """

    def __init__(
        self, config: StreamConfig, data: StudyData, repeats: list[int], task_rows: TaskRows,
        classes: TaskClasses,
    ):  # fmt: skip
        super().__init__(config, data, repeats)
        self.task_rows, self.classes = task_rows, classes
        self.n_replayed = config.stream.minibatch_size or self.recipe.batch_size  # for each step
        self.n_epochs = len(task_rows) * self.recipe.n_epochs  # of the whole stream
        self.memory = Reservoirs(len(repeats), min(config.stream.buffer_size, len(data)), data.device)
        if not self.memory.size:
            refuse_last_batch_of_one(config, data, [rows.shape[1] for rows in task_rows])
        shape = (len(task_rows), len(repeats), len(data))
        self.outputs = {name: torch.full(shape, torch.nan) for name in ("loss", "task_loss", "correct")}

    def run_epoch(self) -> None:
        """Train on the current task for one epoch; outputs are recorded when the task ends."""
        task, epoch = divmod(self.epoch, self.recipe.n_epochs)
        if not epoch:
            self.optimizer = sgd(self.stack, self.recipe)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.recipe, epoch)
        losses = self._train(self._plan(task, epoch))
        check_finite(losses, self.repeats, f"task {task}, epoch {epoch + 1}")
        self.epoch += 1
        if epoch == self.recipe.n_epochs - 1:
            self._record_outputs(task)

    def _plan(self, task: int, epoch: int) -> EpochPlan:
        seed, n = self.recipe.seed, self.task_rows[task].shape[1]
        pairs = zip(self.task_rows[task], self.repeats, strict=True)
        orders = [epoch_order(rows, seed, repeat, task, epoch) for rows, repeat in pairs]
        n_replayed = -(-n // self.recipe.batch_size) * self.n_replayed if self.memory.size else 0
        return EpochPlan(
            rows=torch.stack(orders).to(self.data.device),
            entering=self._draws("buffer", n, task) if not epoch and self.memory.size else None,
            replayed=self._draws("replay", n_replayed, task, epoch) if self.memory.size else None,
            windows=stacked_windows(self.data, n + n_replayed, seed, self.repeats, task, epoch),
        )

    def _train(self, plan: EpochPlan) -> Tensor:
        """All steps of one epoch; returns the networks' summed losses (K,)."""
        n, size, m = plan.rows.shape[1], self.recipe.batch_size, self.n_replayed
        total = torch.zeros(len(self.repeats), device=self.data.device)
        for i, start in enumerate(range(0, n, size)):
            step = slice(start, min(start + size, n))
            rows, windows = plan.rows[:, step], windows_at(plan.windows, step)
            if plan.replayed is not None and len(self.memory):
                stored = self.memory.sample(plan.replayed[:, i * m : (i + 1) * m])
                rows = torch.cat((rows, stored), 1)
                windows = joined(windows, windows_at(plan.windows, slice(n + i * m, n + (i + 1) * m)))
            logits = self.stack.logits(self.data.batch(rows, windows))
            total += train_step(self.optimizer, logits, self.data.labels[rows])
            if plan.entering is not None:
                self.memory.add(plan.rows[:, step], plan.entering[:, step])
        return total

    def _draws(self, purpose: str, n: int, *keys: int) -> Tensor:
        """(K, n) uniform draws, each network's from its own random stream."""
        seed = self.recipe.seed
        generators = [seeding.generator(seed, purpose, repeat, *keys) for repeat in self.repeats]
        draws = [torch.rand(n, generator=generator, dtype=torch.float64) for generator in generators]
        return torch.stack(draws).to(self.data.device)

    @torch.no_grad()
    def _record_outputs(self, task: int) -> None:
        """Outputs on all examples of the tasks so far: clean images, evaluation mode."""
        data = self.data
        example_task = task_of(data.labels, self.classes)
        masks = torch.zeros(len(self.classes), data.n_classes, dtype=torch.bool, device=data.device)
        for i, classes in enumerate(self.classes):
            masks[i, list(classes)] = True
        seen = masks[: task + 1].any(0)
        self.stack.train(False)
        for rows in torch.nonzero(example_task <= task).view(-1).split(CHUNK):
            y = data.labels[rows].expand(self.stack.size, -1)
            logits = self.stack.logits(data.augment.normalise(data.images[rows]), shared=True)
            among_seen = logits.masked_fill(~seen, -torch.inf)
            in_task = logits.masked_fill(~masks[example_task[rows]], -torch.inf)
            for name, values in (("loss", among_seen), ("task_loss", in_task)):
                loss = F.cross_entropy(values.flatten(0, 1), y.flatten(), reduction="none")
                self.outputs[name][task, :, rows.cpu()] = loss.view(y.shape).cpu()
            self.outputs["correct"][task, :, rows.cpu()] = (among_seen.argmax(2) == y).float().cpu()
        self.stack.train()

    def state_dict(self) -> dict[str, Any]:
        """All that later epochs depend on, and the outputs so far, for a checkpoint."""
        memory = {"held": self.memory.slots, "n_seen": self.memory.n_seen}
        return super().state_dict() | memory | {"outputs": self.outputs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.outputs = state["outputs"]
        self.memory.slots, self.memory.n_seen = state["held"].to(self.data.device), state["n_seen"]


def joined(first: Windows | None, second: Windows | None) -> Windows | None:
    """The augmentations of two batches (K, n) and (K, m) as those of one (K, n + m)."""
    if first is None or second is None:
        return None
    return Windows(*(torch.cat(fields, 1) for fields in zip(first, second, strict=True)))


def task_of(labels: Tensor, classes: TaskClasses) -> Tensor:
    """(N,) the task to which each label belongs."""
    tasks = {label: task for task, labels_of_task in enumerate(classes) for label in labels_of_task}
    table = torch.tensor([tasks.get(label, -1) for label in range(1 + max(tasks))], device=labels.device)
    return table[labels]


def halves(
    data: StudyData, repeats: list[int], classes: TaskClasses,
    half: Callable[[NDArray[np.int64], int], NDArray[np.int64]],
) -> TaskRows:  # fmt: skip
    """Each task's rows for each network: `half(labels, seed)` gives the positions that it keeps."""
    example_task = task_of(data.labels, classes).cpu()
    task_rows = []
    for task in range(len(classes)):
        rows = torch.nonzero(example_task == task).view(-1)
        labels = data.labels.cpu()[rows].numpy()
        seeds = [repeat * len(classes) + task for repeat in repeats]
        task_rows.append(torch.stack([rows[torch.from_numpy(half(labels, seed))] for seed in seeds]))
    return task_rows
